//! What learning needs beside inference: the gradients of the engine's ops and the steps of optimisers, on handles.

use vit_msn_cpu as cpu;
use vit_msn_cpu::{
    EmbeddingGradients, EmbeddingShape, LayerNormGradients, PatchShape, SelectionShape,
};
use vit_msn_tensor::{
    Activation, AdamW, Dropout, Dtype, Error, Lars, Result, Sgd, Tensor, check_len, numel,
};

use super::engine::{Engine, attention_shape, rank, with_last};

/// Two operands of one length, and the result.
type Pairwise = fn(&[f32], &[f32], &mut [f32]) -> Result<()>;

impl Engine {
    /// Sets the whole of a floating linear layer, rounded to its storage type.
    pub fn set_linear(&mut self, weights: u32, weight: u32, bias: Option<u32>) -> Result<()> {
        let linear = self.handles.linear(weights)?;
        let (outputs, inputs) = (linear.out_features(), linear.in_features());
        let bytes_of = |handle: u32, what: &str, dims: &[usize]| {
            let data = self.handles.tensor(handle)?.data();
            check_len(what, data.len(), dims)?;
            Dtype::F32.encode(data)
        };
        let weight = bytes_of(weight, "The weight", &[outputs, inputs])?;
        let bias = bias
            .map(|bias| bytes_of(bias, "The bias", &[outputs]))
            .transpose()?;
        let linear = self.handles.linear_mut(weights)?;
        linear.set_rows(0, Dtype::F32, &weight)?;
        match bias {
            Some(bias) => linear.set_bias(0, Dtype::F32, &bias),
            None => Ok(()),
        }
    }

    /// The weight of a floating linear layer: [out_features, in_features].
    pub fn linear_weight(&mut self, weights: u32) -> Result<u32> {
        let weights = self.handles.linear(weights)?;
        let dims = [weights.out_features(), weights.in_features()];
        if weights.dtype() == Dtype::I8 {
            return Err(Error::Unsupported(
                "An int8 layer can't be trained: load the model with a floating dtype.".to_string(),
            ));
        }
        let mut out = Tensor::zeros(&dims)?;
        weights
            .dtype()
            .decode(&weights.get_rows(0, dims[0])?, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// The bias of a linear layer: [out_features].
    pub fn linear_bias(&mut self, weights: u32) -> Result<u32> {
        let weights = self.handles.linear(weights)?;
        let bytes = weights
            .get_bias()?
            .ok_or_else(|| Error::InvalidArgument("This linear layer has no bias.".to_string()))?;
        let mut out = Tensor::zeros(&[weights.out_features()])?;
        weights.bias_dtype().decode(&bytes, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// activation(x).
    pub fn activate(&mut self, x: u32, activation: Activation) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let mut out = Tensor::zeros(x.dims())?;
        cpu::activate(x.data(), activation, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// grad · activation′(x).
    pub fn activate_backward(&mut self, grad: u32, x: u32, activation: Activation) -> Result<u32> {
        let [grad, x] = self.same_shape([grad, x])?;
        let mut out = Tensor::zeros(x.dims())?;
        cpu::activate_backward(grad.data(), x.data(), activation, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// grad · weight.
    pub fn linear_backward_input(&mut self, grad: u32, weights: u32) -> Result<u32> {
        let (grad, weights) = (self.handles.tensor(grad)?, self.handles.linear(weights)?);
        let mut out = Tensor::zeros(&with_last(grad.dims(), weights.in_features())?)?;
        cpu::linear_backward_input(grad.data(), weights, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// (gradᵀ · x, the column sums of grad).
    pub fn linear_backward_weights(&mut self, grad: u32, x: u32) -> Result<[u32; 2]> {
        let (grad, x) = (self.handles.tensor(grad)?, self.handles.tensor(x)?);
        let [outputs, inputs] = [grad, x].map(|tensor| tensor.dims().last().copied().unwrap_or(0));
        let (mut weight, mut bias) = (
            Tensor::zeros(&[outputs, inputs])?,
            Tensor::zeros(&[outputs])?,
        );
        cpu::linear_backward_weights(grad.data(), x.data(), weight.data_mut(), bias.data_mut())?;
        self.add_all([weight, bias])
    }

    /// The gradients by x, weight and bias.
    pub fn layer_norm_backward(
        &mut self,
        grad: u32,
        x: u32,
        weight: u32,
        eps: f32,
    ) -> Result<[u32; 3]> {
        let [grad, x] = self.same_shape([grad, x])?;
        let weight = self.handles.tensor(weight)?;
        let mut by_x = Tensor::zeros(x.dims())?;
        let [mut by_weight, mut by_bias] =
            [Tensor::zeros(weight.dims())?, Tensor::zeros(weight.dims())?];
        let out = LayerNormGradients {
            x: by_x.data_mut(),
            weight: by_weight.data_mut(),
            bias: by_bias.data_mut(),
        };
        cpu::layer_norm_backward(grad.data(), x.data(), weight.data(), eps, out)?;
        self.add_all([by_x, by_weight, by_bias])
    }

    /// The gradient of fused attention by qkv.
    pub fn scaled_dot_product_attention_backward(
        &mut self,
        grad: u32,
        qkv: u32,
        context: u32,
        heads: usize,
    ) -> Result<u32> {
        let [grad, context] = self.same_shape([grad, context])?;
        let qkv = self.handles.tensor(qkv)?;
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(qkv.dims())?;
        cpu::scaled_dot_product_attention_backward(
            grad.data(),
            qkv.data(),
            context.data(),
            shape,
            out.data_mut(),
        )?;
        self.handles.add_tensor(out)
    }

    /// The gradient of eager attention by qkv.
    pub fn eager_attention_backward(
        &mut self,
        grad: u32,
        qkv: u32,
        probs: u32,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<u32> {
        let [grad, qkv, probs] = [
            self.handles.tensor(grad)?,
            self.handles.tensor(qkv)?,
            self.handles.tensor(probs)?,
        ];
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(qkv.dims())?;
        let (grad, qkv, probs) = (grad.data(), qkv.data(), probs.data());
        cpu::eager_attention_backward(grad, qkv, probs, shape, dropout, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// The gradients by the patch projection's weight and bias.
    pub fn patch_embed_backward(
        &mut self,
        grad: u32,
        pixels: u32,
        patch: (usize, usize),
    ) -> Result<[u32; 2]> {
        let (grad, pixels) = (self.handles.tensor(grad)?, self.handles.tensor(pixels)?);
        let [batch, channels, height, width] = rank(pixels.dims(), "pixel_values")?;
        let [_, _, outputs] = rank(grad.dims(), "The gradient of the patch embeddings")?;
        let (patch_height, patch_width) = patch;
        let shape = PatchShape {
            batch,
            channels,
            height,
            width,
            patch_height,
            patch_width,
        };
        let depth = numel(&[channels, patch_height, patch_width])?;
        let (mut weight, mut bias) = (
            Tensor::zeros(&[outputs, depth])?,
            Tensor::zeros(&[outputs])?,
        );
        cpu::patch_embed_backward(
            grad.data(),
            pixels.data(),
            shape,
            weight.data_mut(),
            bias.data_mut(),
        )?;
        self.add_all([weight, bias])
    }

    /// The gradients by patches, CLS token, positions and, where there is a mask, the mask token.
    pub fn embed_tokens_backward(&mut self, grad: u32, mask: Option<&[u8]>) -> Result<Vec<u32>> {
        let grad = self.handles.tensor(grad)?;
        let [batch, tokens, width] = rank(grad.dims(), "The gradient of the tokens")?;
        let Some(patches) = tokens.checked_sub(1) else {
            return Err(Error::InvalidArgument(
                "Tokens need at least the CLS token.".to_string(),
            ));
        };
        let shape = EmbeddingShape {
            batch,
            patches,
            width,
        };
        let mut by_patches = Tensor::zeros(&[batch, patches, width])?;
        let mut by_cls = Tensor::zeros(&[1, 1, width])?;
        let mut by_positions = Tensor::zeros(&[1, tokens, width])?;
        let mut by_mask_token = mask.map(|_| Tensor::zeros(&[1, 1, width])).transpose()?;
        let out = EmbeddingGradients {
            patches: by_patches.data_mut(),
            cls: by_cls.data_mut(),
            positions: by_positions.data_mut(),
            mask: mask.zip(by_mask_token.as_mut().map(Tensor::data_mut)),
        };
        cpu::embed_tokens_backward(grad.data(), shape, out)?;
        let mut handles = self.add_all([by_patches, by_cls, by_positions])?.to_vec();
        if let Some(by_mask_token) = by_mask_token {
            handles.push(self.handles.add_tensor(by_mask_token)?);
        }
        Ok(handles)
    }

    /// [B, 1 + visible, D] back into [B, tokens, D].
    pub fn take_tokens_backward(
        &mut self,
        grad: u32,
        patches: &[u32],
        visible: usize,
        tokens: usize,
    ) -> Result<u32> {
        let grad = self.handles.tensor(grad)?;
        let [batch, _, width] = rank(grad.dims(), "The gradient of the tokens")?;
        let shape = SelectionShape {
            batch,
            tokens,
            visible,
            width,
        };
        let mut out = Tensor::zeros(&[batch, tokens, width])?;
        cpu::take_tokens_backward(grad.data(), shape, patches, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// The gradient by the positions that were interpolated: [1, 1 + rows · columns, D].
    pub fn interpolate_positions_backward(
        &mut self,
        grad: u32,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Result<u32> {
        let grad = self.handles.tensor(grad)?;
        let width = grad.dims().last().copied().unwrap_or(0);
        let tokens = numel(&[from.0, from.1])?.saturating_add(1);
        let mut out = Tensor::zeros(&[1, tokens, width])?;
        cpu::interpolate_positions_backward(grad.data(), from, to, width, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// [B, D] back into [B, tokens, D].
    pub fn pool_backward(&mut self, grad: u32, kind: &str, tokens: usize) -> Result<u32> {
        let grad = self.handles.tensor(grad)?;
        let [batch, width] = rank(grad.dims(), "The gradient of pooling")?;
        let backward = match kind {
            "cls" => cpu::pool_cls_backward,
            "mean" => cpu::pool_mean_backward,
            _ => {
                return Err(Error::InvalidArgument(format!(
                    "Unknown pooling {kind:?}: use \"cls\" or \"mean\"."
                )));
            }
        };
        let mut out = Tensor::zeros(&[batch, tokens, width])?;
        backward(grad.data(), batch, tokens, width, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Mean cross-entropy with label smoothing.
    pub fn cross_entropy_smoothed(
        &mut self,
        logits: u32,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let [_, classes] = rank(logits.dims(), "The logits")?;
        let loss = cpu::cross_entropy_smoothed(logits.data(), classes, labels, smoothing)?;
        self.scalar(loss)
    }

    /// The gradient of cross-entropy by the logits.
    pub fn cross_entropy_backward(
        &mut self,
        logits: u32,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let [_, classes] = rank(logits.dims(), "The logits")?;
        let mut out = Tensor::zeros(logits.dims())?;
        cpu::cross_entropy_backward(logits.data(), classes, labels, smoothing, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// The gradient of the mean squared error.
    pub fn mse_loss_backward(&mut self, x: u32, target: u32) -> Result<u32> {
        self.pairwise(x, target, cpu::mse_loss_backward)
    }

    /// The gradient of the binary cross-entropy with logits.
    pub fn bce_with_logits_backward(&mut self, logits: u32, target: u32) -> Result<u32> {
        self.pairwise(logits, target, cpu::bce_with_logits_backward)
    }

    /// x + y.
    pub fn add(&mut self, x: u32, y: u32) -> Result<u32> {
        self.pairwise(x, y, cpu::add)
    }

    /// Dropout; its gradient is itself.
    pub fn dropout(&mut self, x: u32, dropout: Dropout) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let mut out = Tensor::zeros(x.dims())?;
        cpu::dropout(x.data(), dropout, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// target += scale · x.
    pub fn accumulate(&mut self, target: u32, x: u32, scale: f32) -> Result<()> {
        let [target, x] = self.handles.tensors_mut([target, x])?;
        cpu::accumulate(target.data_mut(), x.data(), scale)
    }

    /// The sum of squares: [1].
    pub fn sum_of_squares(&mut self, x: u32) -> Result<u32> {
        let sum = cpu::sum_of_squares(self.handles.tensor(x)?.data())?;
        self.scalar(sum)
    }

    /// One step of AdamW.
    pub fn adamw_step(&mut self, tensors: [u32; 4], options: AdamW) -> Result<()> {
        let [parameter, gradient, m, v] = self.handles.tensors_mut(tensors)?;
        cpu::adamw_step(
            parameter.data_mut(),
            gradient.data(),
            m.data_mut(),
            v.data_mut(),
            options,
        )
    }

    /// One step of SGD; without momentum there is no buffer.
    pub fn sgd_step(
        &mut self,
        parameter: u32,
        gradient: u32,
        momentum: Option<u32>,
        options: Sgd,
    ) -> Result<()> {
        let Some(momentum) = momentum else {
            let [parameter, gradient] = self.handles.tensors_mut([parameter, gradient])?;
            return cpu::sgd_step(parameter.data_mut(), gradient.data(), None, options);
        };
        let [parameter, gradient, momentum] =
            self.handles.tensors_mut([parameter, gradient, momentum])?;
        let momentum = Some(momentum.data_mut());
        cpu::sgd_step(parameter.data_mut(), gradient.data(), momentum, options)
    }

    /// One step of LARS.
    pub fn lars_step(&mut self, tensors: [u32; 3], options: Lars) -> Result<()> {
        let [parameter, gradient, momentum] = self.handles.tensors_mut(tensors)?;
        cpu::lars_step(
            parameter.data_mut(),
            gradient.data(),
            momentum.data_mut(),
            options,
        )
    }

    fn pairwise(&mut self, x: u32, y: u32, op: Pairwise) -> Result<u32> {
        let [x, y] = self.same_shape([x, y])?;
        let mut out = Tensor::zeros(x.dims())?;
        op(x.data(), y.data(), out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Two tensors of one shape.
    pub(super) fn same_shape(&self, [x, y]: [u32; 2]) -> Result<[&Tensor; 2]> {
        let (x, y) = (self.handles.tensor(x)?, self.handles.tensor(y)?);
        if x.dims() == y.dims() {
            return Ok([x, y]);
        }
        Err(Error::InvalidArgument(format!(
            "Tensors of the shapes {:?} and {:?} don't go together: they must have the same.",
            x.dims(),
            y.dims()
        )))
    }

    pub(super) fn add_all<const N: usize>(&mut self, tensors: [Tensor; N]) -> Result<[u32; N]> {
        let mut handles = [0; N];
        for (handle, tensor) in handles.iter_mut().zip(tensors) {
            *handle = self.handles.add_tensor(tensor)?;
        }
        Ok(handles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(engine: &mut Engine, dims: &[usize]) -> u32 {
        let count = dims.iter().product::<usize>();
        let data = (0..count).map(|v| v as f32 / count as f32).collect();
        engine.tensor(data, dims).unwrap()
    }

    #[test]
    fn a_layer_that_is_set_gives_back_what_it_was_set_to() {
        let mut engine = Engine::default();
        let (weight, bias) = (tensor(&mut engine, &[5, 3]), tensor(&mut engine, &[5]));
        let layer = engine.linear_weights(5, 3, Dtype::F32, true).unwrap();
        engine.set_linear(layer, weight, Some(bias)).unwrap();
        for (made, given) in [
            (engine.linear_weight(layer).unwrap(), weight),
            (engine.linear_bias(layer).unwrap(), bias),
        ] {
            let [made, given] = [made, given].map(|handle| engine.handles.tensor(handle).unwrap());
            assert_eq!(made, given);
        }
        let error = engine.set_linear(layer, bias, Some(bias)).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let quantised = engine.linear_weights(5, 3, Dtype::I8, false).unwrap();
        assert_eq!(
            engine.linear_weight(quantised).unwrap_err().code(),
            "UNSUPPORTED"
        );
        assert_eq!(
            engine.linear_bias(quantised).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn gradients_have_the_shapes_of_what_they_are_of() {
        let mut engine = Engine::default();
        let grad = tensor(&mut engine, &[2, 5, 6]);
        let dims =
            |engine: &Engine, handle: u32| engine.handles.tensor(handle).unwrap().dims().to_vec();
        let [patches, cls, positions, mask_token] = engine
            .embed_tokens_backward(grad, Some(&[0, 1, 0, 0, 1, 1, 0, 0]))
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(dims(&engine, patches), [2, 4, 6]);
        assert_eq!(dims(&engine, cls), [1, 1, 6]);
        assert_eq!(dims(&engine, positions), [1, 5, 6]);
        assert_eq!(dims(&engine, mask_token), [1, 1, 6]);
        assert_eq!(engine.embed_tokens_backward(grad, None).unwrap().len(), 3);
        let x = tensor(&mut engine, &[2, 5, 3]);
        let [weight, bias] = engine.linear_backward_weights(grad, x).unwrap();
        assert_eq!(dims(&engine, weight), [6, 3]);
        assert_eq!(dims(&engine, bias), [6]);
        let back = engine
            .take_tokens_backward(grad, &[0, 1, 2, 3, 6, 5, 4, 3], 4, 8)
            .unwrap();
        assert_eq!(dims(&engine, back), [2, 8, 6]);
        let pixels = tensor(&mut engine, &[2, 3, 4, 5]);
        let by_patch = tensor(&mut engine, &[2, 4, 7]);
        let [weight, bias] = engine
            .patch_embed_backward(by_patch, pixels, (2, 2))
            .unwrap();
        assert_eq!(dims(&engine, weight), [7, 12]);
        assert_eq!(dims(&engine, bias), [7]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let mut engine = Engine::default();
        let (x, y) = (tensor(&mut engine, &[2, 6]), tensor(&mut engine, &[6, 2]));
        let codes = [
            engine.add(x, y).unwrap_err(),
            engine
                .activate_backward(x, y, Activation::Gelu)
                .unwrap_err(),
            engine.layer_norm_backward(x, y, x, 1e-6).unwrap_err(),
            engine.linear_backward_weights(x, y).unwrap_err(),
            engine
                .scaled_dot_product_attention_backward(x, x, x, 1)
                .unwrap_err(),
            engine.embed_tokens_backward(x, None).unwrap_err(),
            engine.pool_backward(x, "max", 3).unwrap_err(),
            engine.pool_backward(x, "mean", 1).unwrap_err(),
            engine.take_tokens_backward(x, &[], 0, 1).unwrap_err(),
            engine
                .interpolate_positions_backward(x, (usize::MAX, 2), (1, 1))
                .unwrap_err(),
            engine.accumulate(x, x, 1.0).unwrap_err(),
            engine
                .dropout(
                    x,
                    Dropout {
                        probability: 2.0,
                        seed: 0,
                    },
                )
                .unwrap_err(),
        ]
        .map(|error| error.code());
        assert_eq!(codes, ["INVALID_ARGUMENT"; 12]);
        assert_eq!(engine.handles.live().0, 2);
    }
}
