//! The interface that every backend implements.

use crate::{Activation, AdamW, Dropout, Dtype, Error, Lars, MsnLoss, MsnTargets, Result, Sgd};

/// Which vector represents an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The CLS token.
    Cls = 0,
    /// The mean of the patches, without the CLS token.
    Mean = 1,
}

impl Pooling {
    /// The pooling called `name`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "cls" => Ok(Self::Cls),
            "mean" => Ok(Self::Mean),
            _ => Err(Error::InvalidArgument(format!(
                "Unknown pooling {name:?}: use \"cls\" or \"mean\"."
            ))),
        }
    }
}

/// Declares the ops of [`for_each_tensor_op`](crate::for_each_tensor_op).
macro_rules! declare {
    ($($(#[$doc:meta])* $op:ident($($tensor:ident),+ $(; $($value:ident: $type:ty),+)?);)+) => {$(
        $(#[$doc])*
        fn $op(
            &mut self,
            $($tensor: &Self::Tensor,)+
            $($($value: $type,)+)?
        ) -> Result<Self::Tensor>;
    )+};
}

/// Rows and columns.
pub type Grid = (usize, usize);

/// The ops of the engine, as `ts/engine/engine.ts` and `training_engine.ts` declare them: coarse, without laziness or
/// broadcasting. Each allocates its results.
///
/// # Errors
/// Any op can fail with INVALID_ARGUMENT (shapes that don't fit) or OUT_OF_MEMORY; on a device also with UNSUPPORTED or
/// ENGINE_DEAD.
pub trait Backend {
    /// Float32 values with a shape.
    type Tensor;
    /// The weight and bias of a linear layer.
    type Linear;
    /// The input of a linear layer: a tensor, or a result stored in that layer's own form.
    type Input<'a>;
    /// The result of an op that takes `reader`: a tensor, or the form that this layer reads.
    type Output;

    /// A tensor from values.
    fn tensor(&mut self, data: Vec<f32>, dims: &[usize]) -> Result<Self::Tensor>;

    /// A checkpoint's raw little-endian values of type `from`, rounded through `dtype` and widened.
    fn parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<Self::Tensor>;

    /// An empty linear layer.
    fn linear_weights(
        &mut self,
        outputs: usize,
        inputs: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<Self::Linear>;

    /// Sets whole rows of a weight from raw values.
    fn set_rows(
        &mut self,
        weights: &mut Self::Linear,
        row: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()>;

    /// Sets rows that are already quantised, from signed bytes and one float32 scale per row.
    fn set_quantised_rows(
        &mut self,
        weights: &mut Self::Linear,
        row: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()>;

    /// Sets bias elements from raw values.
    fn set_bias(
        &mut self,
        weights: &mut Self::Linear,
        offset: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()>;

    /// activation(x · weightᵀ + bias) + residual. Here and below, `reader` is the only layer that will read the result,
    /// which may then have the form that this layer reads.
    fn linear(
        &mut self,
        x: Self::Input<'_>,
        weights: &Self::Linear,
        activation: Activation,
        residual: Option<&Self::Tensor>,
        reader: Option<&Self::Linear>,
    ) -> Result<Self::Output>;

    /// Layer normalisation over the last dimension.
    fn layer_norm(
        &mut self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        eps: f32,
        reader: Option<&Self::Linear>,
    ) -> Result<Self::Output>;

    /// Fused attention.
    fn scaled_dot_product_attention(
        &mut self,
        qkv: &Self::Tensor,
        heads: usize,
        reader: Option<&Self::Linear>,
    ) -> Result<Self::Output>;

    /// Unfused attention, with optional dropout of the probabilities. Returns the context and the probabilities before
    /// dropout.
    fn eager_attention(
        &mut self,
        qkv: &Self::Tensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<[Self::Tensor; 2]>;

    /// Pixels to patch embeddings.
    fn patch_embed(
        &mut self,
        pixels: &Self::Tensor,
        projection: &Self::Linear,
        patch: Grid,
    ) -> Result<Self::Tensor>;

    /// Patch embeddings to tokens. The token of `mask` replaces the patches whose byte in `mask` isn't 0.
    fn embed_tokens(
        &mut self,
        patches: &Self::Tensor,
        cls: &Self::Tensor,
        positions: &Self::Tensor,
        mask: Option<(&[u8], &Self::Tensor)>,
    ) -> Result<Self::Tensor>;

    /// Position encodings for another grid: `[1, 1 + rows · columns, D]`.
    fn interpolate_positions(
        &mut self,
        positions: &Self::Tensor,
        from: Grid,
        to: Grid,
    ) -> Result<Self::Tensor>;

    /// One vector per image.
    fn pool(&mut self, x: &Self::Tensor, pooling: Pooling) -> Result<Self::Tensor>;

    /// Mean cross-entropy with label smoothing.
    fn cross_entropy(
        &mut self,
        logits: &Self::Tensor,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<Self::Tensor>;

    /// Sets all parameters of a floating-point linear layer, rounded to its storage type.
    fn set_linear(
        &mut self,
        weights: &mut Self::Linear,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
    ) -> Result<()>;

    /// The weight of a floating-point linear layer: `[out_features, in_features]`.
    fn linear_weight(&mut self, weights: &Self::Linear) -> Result<Self::Tensor>;

    /// The bias of a linear layer: `[out_features]`.
    fn linear_bias(&mut self, weights: &Self::Linear) -> Result<Self::Tensor>;

    /// activation(x).
    fn activate(&mut self, x: &Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// grad · activation′(x).
    fn activate_backward(
        &mut self,
        grad: &Self::Tensor,
        x: &Self::Tensor,
        activation: Activation,
    ) -> Result<Self::Tensor>;

    /// grad · weight.
    fn linear_backward_input(
        &mut self,
        grad: &Self::Tensor,
        weights: &Self::Linear,
    ) -> Result<Self::Tensor>;

    /// gradᵀ · x, and the column sums of grad.
    fn linear_backward_weights(
        &mut self,
        grad: &Self::Tensor,
        x: &Self::Tensor,
    ) -> Result<[Self::Tensor; 2]>;

    /// The gradients with respect to x, weight and bias.
    fn layer_norm_backward(
        &mut self,
        grad: &Self::Tensor,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        eps: f32,
    ) -> Result<[Self::Tensor; 3]>;

    /// The gradient of eager attention with respect to qkv.
    fn eager_attention_backward(
        &mut self,
        grad: &Self::Tensor,
        qkv: &Self::Tensor,
        probs: &Self::Tensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<Self::Tensor>;

    /// The gradients with respect to the patch projection's weight and bias.
    fn patch_embed_backward(
        &mut self,
        grad: &Self::Tensor,
        pixels: &Self::Tensor,
        patch: Grid,
    ) -> Result<[Self::Tensor; 2]>;

    /// The gradients with respect to patches, CLS token, positions and, if there is a mask, the mask token.
    fn embed_tokens_backward(
        &mut self,
        grad: &Self::Tensor,
        mask: Option<&[u8]>,
    ) -> Result<Vec<Self::Tensor>>;

    /// The gradient with respect to the original positions: `[1, 1 + rows · columns, D]`.
    fn interpolate_positions_backward(
        &mut self,
        grad: &Self::Tensor,
        from: Grid,
        to: Grid,
    ) -> Result<Self::Tensor>;

    /// Spreads `[B, D]` back over `[B, tokens, D]`.
    fn pool_backward(
        &mut self,
        grad: &Self::Tensor,
        pooling: Pooling,
        tokens: usize,
    ) -> Result<Self::Tensor>;

    /// Dropout. Its gradient is the same op, applied to the gradient.
    fn dropout(&mut self, x: &Self::Tensor, dropout: Dropout) -> Result<Self::Tensor>;

    /// target += scale · x.
    fn accumulate(&mut self, target: &mut Self::Tensor, x: &Self::Tensor, scale: f32)
    -> Result<()>;

    /// One step of AdamW; `moments` are the first and second moments.
    fn adamw_step(
        &mut self,
        parameter: &mut Self::Tensor,
        gradient: &Self::Tensor,
        moments: [&mut Self::Tensor; 2],
        options: AdamW,
    ) -> Result<()>;

    /// One step of SGD; without momentum there is no buffer.
    fn sgd_step(
        &mut self,
        parameter: &mut Self::Tensor,
        gradient: &Self::Tensor,
        momentum: Option<&mut Self::Tensor>,
        options: Sgd,
    ) -> Result<()>;

    /// One step of LARS.
    fn lars_step(
        &mut self,
        parameter: &mut Self::Tensor,
        gradient: &Self::Tensor,
        momentum: &mut Self::Tensor,
        options: Lars,
    ) -> Result<()>;

    /// Batch normalisation with the batch's statistics. Returns y, mean and unbiased variance.
    fn batch_norm(
        &mut self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        eps: f32,
    ) -> Result<[Self::Tensor; 3]>;

    /// The gradients of batch normalisation with respect to x, weight and bias.
    fn batch_norm_backward(
        &mut self,
        grad: &Self::Tensor,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        eps: f32,
    ) -> Result<[Self::Tensor; 3]>;

    /// Batch normalisation with given weight, bias, mean and variance.
    fn batch_norm_inference(
        &mut self,
        x: &Self::Tensor,
        given: [&Self::Tensor; 4],
        eps: f32,
    ) -> Result<Self::Tensor>;

    /// Their gradients with respect to x and prototypes.
    fn prototype_logits_backward(
        &mut self,
        grad: &Self::Tensor,
        x: &Self::Tensor,
        prototypes: &Self::Tensor,
        temperature: f64,
    ) -> Result<[Self::Tensor; 2]>;

    /// Splits a gradient into its first `rows` rows and the rest.
    fn concat_rows_backward(
        &mut self,
        grad: &Self::Tensor,
        rows: usize,
    ) -> Result<[Self::Tensor; 2]>;

    /// MSN's targets from logits.
    fn msn_targets(&mut self, logits: &Self::Tensor, options: MsnTargets) -> Result<Self::Tensor>;

    /// MSN's loss and its terms: `[4]`.
    fn msn_loss(
        &mut self,
        logits: &Self::Tensor,
        targets: &Self::Tensor,
        weights: MsnLoss,
    ) -> Result<Self::Tensor>;

    /// The gradient of MSN's loss with respect to the logits.
    fn msn_loss_backward(
        &mut self,
        logits: &Self::Tensor,
        targets: &Self::Tensor,
        weights: MsnLoss,
    ) -> Result<Self::Tensor>;

    /// target = momentum · target + (1 − momentum) · source.
    fn ema(
        &mut self,
        target: &mut Self::Tensor,
        source: &Self::Tensor,
        momentum: f64,
    ) -> Result<()>;

    crate::for_each_tensor_op!(declare);
}
