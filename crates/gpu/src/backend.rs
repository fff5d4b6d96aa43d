//! Implements [`Backend`] for a device's stream.

use vit_msn_tensor::{
    Activation, AdamW, Backend, Dropout, Dtype, Error, Grid, Lars, MsnLoss, MsnTargets, Pooling,
    Result, Sgd,
};

use crate as gpu;
use crate::{Activations, GpuLinear, GpuTensor, Stored, Stream, TokenMask};

/// Implements the ops of [`vit_msn_tensor::for_each_tensor_op`] by the functions of the same names.
macro_rules! forward {
    ($($(#[$doc:meta])* $op:ident($($tensor:ident),+ $(; $($value:ident: $type:ty),+)?);)+) => {$(
        fn $op(&mut self, $($tensor: &GpuTensor,)+ $($($value: $type,)+)?) -> Result<GpuTensor> {
            gpu::$op(self, $($tensor,)+ $($($value,)+)?)
        }
    )+};
}

impl Backend for Stream {
    type Tensor = GpuTensor;
    type Linear = GpuLinear;
    type Input<'a> = Activations<'a>;
    type Output = Stored;

    fn tensor(&mut self, data: Vec<f32>, dims: &[usize]) -> Result<GpuTensor> {
        self.upload(&data, dims)
    }

    /// Checkpoints store tokens and positions with a batch of one, which ops don't expect.
    fn parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<GpuTensor> {
        self.upload_parameter(bytes, from, dtype, without_leading_ones(dims))
    }

    fn linear_weights(
        &mut self,
        outputs: usize,
        inputs: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<GpuLinear> {
        GpuLinear::new(self, outputs, inputs, dtype, has_bias)
    }

    fn set_rows(
        &mut self,
        weights: &mut GpuLinear,
        row: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        weights.set_rows(self, row, from, bytes)
    }

    fn set_quantised_rows(
        &mut self,
        weights: &mut GpuLinear,
        row: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()> {
        weights.set_quantised_rows(self, row, bytes, scales)
    }

    fn set_bias(
        &mut self,
        weights: &mut GpuLinear,
        offset: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        weights.set_bias(self, offset, from, bytes)
    }

    fn linear(
        &mut self,
        x: Activations<'_>,
        weights: &GpuLinear,
        activation: Activation,
        residual: Option<&GpuTensor>,
        reader: Option<&GpuLinear>,
    ) -> Result<Stored> {
        gpu::linear_for(self, x, weights, activation, residual, reader)
    }

    fn layer_norm(
        &mut self,
        x: &GpuTensor,
        weight: &GpuTensor,
        bias: &GpuTensor,
        eps: f32,
        reader: Option<&GpuLinear>,
    ) -> Result<Stored> {
        gpu::layer_norm_for(self, x, weight, bias, eps, reader)
    }

    fn scaled_dot_product_attention(
        &mut self,
        qkv: &GpuTensor,
        heads: usize,
        reader: Option<&GpuLinear>,
    ) -> Result<Stored> {
        gpu::scaled_dot_product_attention_for(self, qkv, heads, reader)
    }

    fn eager_attention(
        &mut self,
        qkv: &GpuTensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<[GpuTensor; 2]> {
        let (context, probs) = match dropout {
            Some(dropout) => gpu::eager_attention_dropout(self, qkv, heads, dropout)?,
            None => gpu::eager_attention(self, qkv, heads)?,
        };
        Ok([context, probs])
    }

    fn patch_embed(
        &mut self,
        pixels: &GpuTensor,
        projection: &GpuLinear,
        patch: Grid,
    ) -> Result<GpuTensor> {
        gpu::patch_embed(self, pixels, projection, patch)
    }

    fn embed_tokens(
        &mut self,
        patches: &GpuTensor,
        cls: &GpuTensor,
        positions: &GpuTensor,
        mask: Option<(&[u8], &GpuTensor)>,
    ) -> Result<GpuTensor> {
        let Some((mask, token)) = mask else {
            return gpu::embed_tokens(self, patches, cls, positions, None);
        };
        let &[batch, count, _] = patches.dims() else {
            return Err(Error::InvalidArgument(
                "The patch embeddings must have 3 dimensions.".to_string(),
            ));
        };
        let masked = &self.upload(&floats(mask), &[batch, count])?;
        let mask = Some(TokenMask { masked, token });
        gpu::embed_tokens(self, patches, cls, positions, mask)
    }

    fn interpolate_positions(
        &mut self,
        positions: &GpuTensor,
        from: Grid,
        to: Grid,
    ) -> Result<GpuTensor> {
        gpu::interpolate_positions(self, positions, from, to)
    }

    fn pool(&mut self, x: &GpuTensor, pooling: Pooling) -> Result<GpuTensor> {
        gpu::pool(self, x, pooling)
    }

    fn cross_entropy(
        &mut self,
        logits: &GpuTensor,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<GpuTensor> {
        gpu::cross_entropy_smoothed(self, logits, labels, smoothing)
    }

    fn set_linear(
        &mut self,
        weights: &mut GpuLinear,
        weight: &GpuTensor,
        bias: Option<&GpuTensor>,
    ) -> Result<()> {
        gpu::set_linear(self, weights, weight, bias)
    }

    fn linear_weight(&mut self, weights: &GpuLinear) -> Result<GpuTensor> {
        gpu::linear_weight(self, weights)
    }

    fn linear_bias(&mut self, weights: &GpuLinear) -> Result<GpuTensor> {
        gpu::linear_bias(self, weights)
    }

    fn activate(&mut self, x: &GpuTensor, activation: Activation) -> Result<GpuTensor> {
        gpu::activate(self, x, activation)
    }

    fn activate_backward(
        &mut self,
        grad: &GpuTensor,
        x: &GpuTensor,
        activation: Activation,
    ) -> Result<GpuTensor> {
        gpu::activate_backward(self, grad, x, activation)
    }

    fn linear_backward_input(
        &mut self,
        grad: &GpuTensor,
        weights: &GpuLinear,
    ) -> Result<GpuTensor> {
        gpu::linear_backward_input(self, grad, weights)
    }

    fn linear_backward_weights(
        &mut self,
        grad: &GpuTensor,
        x: &GpuTensor,
    ) -> Result<[GpuTensor; 2]> {
        gpu::linear_backward_weights(self, grad, x).map(<[_; 2]>::from)
    }

    fn layer_norm_backward(
        &mut self,
        grad: &GpuTensor,
        x: &GpuTensor,
        weight: &GpuTensor,
        eps: f32,
    ) -> Result<[GpuTensor; 3]> {
        let by = gpu::layer_norm_backward(self, grad, x, weight, eps)?;
        Ok([by.x, by.weight, by.bias])
    }

    fn eager_attention_backward(
        &mut self,
        grad: &GpuTensor,
        qkv: &GpuTensor,
        probs: &GpuTensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<GpuTensor> {
        gpu::eager_attention_backward(self, grad, qkv, probs, heads, dropout)
    }

    fn patch_embed_backward(
        &mut self,
        grad: &GpuTensor,
        pixels: &GpuTensor,
        patch: Grid,
    ) -> Result<[GpuTensor; 2]> {
        gpu::patch_embed_backward(self, grad, pixels, patch).map(<[_; 2]>::from)
    }

    fn embed_tokens_backward(
        &mut self,
        grad: &GpuTensor,
        mask: Option<&[u8]>,
    ) -> Result<Vec<GpuTensor>> {
        let mask = match mask {
            Some(mask) => {
                let &[batch, tokens, _] = grad.dims() else {
                    return Err(Error::InvalidArgument(
                        "The gradient of the tokens must have 3 dimensions.".to_string(),
                    ));
                };
                let dims = [batch, tokens.saturating_sub(1)];
                Some(self.upload(&floats(mask), &dims)?)
            }
            None => None,
        };
        let by = gpu::embed_tokens_backward(self, grad, mask.as_ref())?;
        let all = [by.patches, by.cls, by.positions];
        Ok(all.into_iter().chain(by.mask_token).collect())
    }

    fn interpolate_positions_backward(
        &mut self,
        grad: &GpuTensor,
        from: Grid,
        to: Grid,
    ) -> Result<GpuTensor> {
        gpu::interpolate_positions_backward(self, grad, from, to)
    }

    fn pool_backward(
        &mut self,
        grad: &GpuTensor,
        pooling: Pooling,
        tokens: usize,
    ) -> Result<GpuTensor> {
        gpu::pool_backward(self, grad, pooling, tokens)
    }

    fn dropout(&mut self, x: &GpuTensor, dropout: Dropout) -> Result<GpuTensor> {
        gpu::dropout(self, x, dropout)
    }

    fn accumulate(&mut self, target: &mut GpuTensor, x: &GpuTensor, scale: f32) -> Result<()> {
        gpu::accumulate(self, target, x, scale)
    }

    fn adamw_step(
        &mut self,
        parameter: &mut GpuTensor,
        gradient: &GpuTensor,
        [m, v]: [&mut GpuTensor; 2],
        options: AdamW,
    ) -> Result<()> {
        gpu::adamw_step(self, parameter, gradient, m, v, options)
    }

    fn sgd_step(
        &mut self,
        parameter: &mut GpuTensor,
        gradient: &GpuTensor,
        momentum: Option<&mut GpuTensor>,
        options: Sgd,
    ) -> Result<()> {
        gpu::sgd_step(self, parameter, gradient, momentum, options)
    }

    fn lars_step(
        &mut self,
        parameter: &mut GpuTensor,
        gradient: &GpuTensor,
        momentum: &mut GpuTensor,
        options: Lars,
    ) -> Result<()> {
        gpu::lars_step(self, parameter, gradient, momentum, options)
    }

    fn batch_norm(
        &mut self,
        x: &GpuTensor,
        weight: &GpuTensor,
        bias: &GpuTensor,
        eps: f32,
    ) -> Result<[GpuTensor; 3]> {
        let out = gpu::batch_norm(self, x, weight, bias, eps)?;
        Ok([out.y, out.mean, out.variance])
    }

    fn batch_norm_backward(
        &mut self,
        grad: &GpuTensor,
        x: &GpuTensor,
        weight: &GpuTensor,
        eps: f32,
    ) -> Result<[GpuTensor; 3]> {
        let by = gpu::batch_norm_backward(self, grad, x, weight, eps)?;
        Ok([by.x, by.weight, by.bias])
    }

    fn batch_norm_inference(
        &mut self,
        x: &GpuTensor,
        given: [&GpuTensor; 4],
        eps: f32,
    ) -> Result<GpuTensor> {
        gpu::batch_norm_inference(self, x, given, eps)
    }

    fn prototype_logits_backward(
        &mut self,
        grad: &GpuTensor,
        x: &GpuTensor,
        prototypes: &GpuTensor,
        temperature: f64,
    ) -> Result<[GpuTensor; 2]> {
        gpu::prototype_logits_backward(self, grad, x, prototypes, temperature)
    }

    fn concat_rows_backward(&mut self, grad: &GpuTensor, rows: usize) -> Result<[GpuTensor; 2]> {
        gpu::concat_rows_backward(self, grad, rows)
    }

    fn msn_targets(&mut self, logits: &GpuTensor, options: MsnTargets) -> Result<GpuTensor> {
        gpu::msn_targets(self, logits, options)
    }

    fn msn_loss(
        &mut self,
        logits: &GpuTensor,
        targets: &GpuTensor,
        weights: MsnLoss,
    ) -> Result<GpuTensor> {
        gpu::msn_loss(self, logits, targets, weights)
    }

    fn msn_loss_backward(
        &mut self,
        logits: &GpuTensor,
        targets: &GpuTensor,
        weights: MsnLoss,
    ) -> Result<GpuTensor> {
        gpu::msn_loss_backward(self, logits, targets, weights)
    }

    fn ema(&mut self, target: &mut GpuTensor, source: &GpuTensor, momentum: f64) -> Result<()> {
        gpu::ema(self, target, source, momentum)
    }

    vit_msn_tensor::for_each_tensor_op!(forward);
}

fn floats(mask: &[u8]) -> Vec<f32> {
    mask.iter().map(|&byte| f32::from(byte)).collect()
}

fn without_leading_ones(dims: &[usize]) -> &[usize] {
    match dims {
        [1, rest @ ..] if !rest.is_empty() => without_leading_ones(rest),
        dims => dims,
    }
}
