//! The ops that make one tensor from tensors and plain values, as a list. The trait [`Backend`](crate::Backend), the
//! GPU's implementation and the exports to JavaScript are generated from it; other ops are written out in each place.

/// Passes the list to the macro `$generate`: each op's documentation, its tensors and, after a semicolon, its other
/// arguments.
#[macro_export]
macro_rules! for_each_tensor_op {
    ($generate:ident) => {
        $generate! {
            /// The CLS token and `visible` chosen patches of each image.
            take_tokens(x; patches: &[u32], visible: usize);
            /// Scatters `[B, 1 + visible, D]` back into `[B, tokens, D]`.
            take_tokens_backward(grad; patches: &[u32], visible: usize, tokens: usize);
            /// The gradient of fused attention with respect to qkv.
            scaled_dot_product_attention_backward(grad, qkv, context; num_heads: usize);
            /// The gradient of cross-entropy with respect to the logits.
            cross_entropy_backward(logits; labels: &[i32], label_smoothing: f64);
            /// Mean squared error.
            mse_loss(x, target);
            /// The gradient of the mean squared error.
            mse_loss_backward(x, target);
            /// Mean binary cross-entropy with logits.
            bce_with_logits(logits, target);
            /// The gradient of the binary cross-entropy with logits.
            bce_with_logits_backward(logits, target);
            /// x + y.
            add(x, y);
            /// The sum of squares: `[1]`.
            sum_of_squares(x);
            /// The rows of x, then those of y.
            concat_rows(x, y);
            /// Cosine similarities with the prototypes, divided by the temperature.
            prototype_logits(x, prototypes; temperature: f64);
        }
    };
}
