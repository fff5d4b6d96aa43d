//! What learning needs beside inference: the gradients of the engine's ops and the steps of optimisers, on handles.

use vit_msn_gpu as gpu;
use vit_msn_gpu::GpuTensor;
use vit_msn_tensor::{Activation, AdamW, Dropout, Error, Lars, Result, Sgd};

use super::engine::{Engine, pooling};

impl Engine {
    /// Sets the whole of a floating linear layer, rounded to its storage type.
    pub fn set_linear(&mut self, weights: u32, weight: u32, bias: Option<u32>) -> Result<()> {
        let Some(bias) = bias else {
            let (layer, [weight]) = self.handles.linear_mut_with(weights, [weight])?;
            return gpu::set_linear(&mut self.stream, layer, weight, None);
        };
        let (layer, [weight, bias]) = self.handles.linear_mut_with(weights, [weight, bias])?;
        gpu::set_linear(&mut self.stream, layer, weight, Some(bias))
    }

    /// The weight of a floating linear layer: [out_features, in_features].
    pub fn linear_weight(&mut self, weights: u32) -> Result<u32> {
        let weights = self.handles.linear(weights)?;
        let y = gpu::linear_weight(&mut self.stream, weights)?;
        self.handles.add_tensor(y)
    }

    /// The bias of a linear layer: [out_features].
    pub fn linear_bias(&mut self, weights: u32) -> Result<u32> {
        let weights = self.handles.linear(weights)?;
        let y = gpu::linear_bias(&mut self.stream, weights)?;
        self.handles.add_tensor(y)
    }

    /// activation(x).
    pub fn activate(&mut self, x: u32, activation: Activation) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let y = gpu::activate(&mut self.stream, x, activation)?;
        self.handles.add_tensor(y)
    }

    /// grad · activation′(x).
    pub fn activate_backward(&mut self, grad: u32, x: u32, activation: Activation) -> Result<u32> {
        let (grad, x) = (self.handles.tensor(grad)?, self.handles.tensor(x)?);
        let y = gpu::activate_backward(&mut self.stream, grad, x, activation)?;
        self.handles.add_tensor(y)
    }

    /// grad · weight.
    pub fn linear_backward_input(&mut self, grad: u32, weights: u32) -> Result<u32> {
        let (grad, weights) = (self.handles.tensor(grad)?, self.handles.linear(weights)?);
        let y = gpu::linear_backward_input(&mut self.stream, grad, weights)?;
        self.handles.add_tensor(y)
    }

    /// (gradᵀ · x, the column sums of grad).
    pub fn linear_backward_weights(&mut self, grad: u32, x: u32) -> Result<[u32; 2]> {
        let (grad, x) = (self.handles.tensor(grad)?, self.handles.tensor(x)?);
        let (weight, bias) = gpu::linear_backward_weights(&mut self.stream, grad, x)?;
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
        let [grad, x, weight] = [
            self.handles.tensor(grad)?,
            self.handles.tensor(x)?,
            self.handles.tensor(weight)?,
        ];
        let by = gpu::layer_norm_backward(&mut self.stream, grad, x, weight, eps)?;
        self.add_all([by.x, by.weight, by.bias])
    }

    /// The gradient of fused attention by qkv.
    pub fn scaled_dot_product_attention_backward(
        &mut self,
        grad: u32,
        qkv: u32,
        context: u32,
        heads: usize,
    ) -> Result<u32> {
        let [grad, qkv, context] = [
            self.handles.tensor(grad)?,
            self.handles.tensor(qkv)?,
            self.handles.tensor(context)?,
        ];
        let y = gpu::scaled_dot_product_attention_backward(
            &mut self.stream,
            grad,
            qkv,
            context,
            heads,
        )?;
        self.handles.add_tensor(y)
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
        let y = gpu::eager_attention_backward(&mut self.stream, grad, qkv, probs, heads, dropout)?;
        self.handles.add_tensor(y)
    }

    /// The gradients by the patch projection's weight and bias.
    pub fn patch_embed_backward(
        &mut self,
        grad: u32,
        pixels: u32,
        patch: (usize, usize),
    ) -> Result<[u32; 2]> {
        let (grad, pixels) = (self.handles.tensor(grad)?, self.handles.tensor(pixels)?);
        let (weight, bias) = gpu::patch_embed_backward(&mut self.stream, grad, pixels, patch)?;
        self.add_all([weight, bias])
    }

    /// The gradients by patches, CLS token, positions and, where there is a mask, the mask token.
    pub fn embed_tokens_backward(&mut self, grad: u32, mask: Option<&[u8]>) -> Result<Vec<u32>> {
        let grad = self.handles.tensor(grad)?;
        let mask = match mask {
            Some(mask) => {
                let values: Vec<_> = mask.iter().map(|&m| f32::from(m)).collect();
                let &[batch, tokens, _] = grad.dims() else {
                    return Err(Error::InvalidArgument(
                        "The gradient of the tokens must have 3 dimensions.".to_string(),
                    ));
                };
                let dims = [batch, tokens.saturating_sub(1)];
                Some(self.stream.upload(&values, &dims)?)
            }
            None => None,
        };
        let by = gpu::embed_tokens_backward(&mut self.stream, grad, mask.as_ref())?;
        let mut handles = self.add_all([by.patches, by.cls, by.positions])?.to_vec();
        if let Some(by_mask_token) = by.mask_token {
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
        let y = gpu::take_tokens_backward(&mut self.stream, grad, patches, visible, tokens)?;
        self.handles.add_tensor(y)
    }

    /// The gradient by the positions that were interpolated: [1, 1 + rows · columns, D].
    pub fn interpolate_positions_backward(
        &mut self,
        grad: u32,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Result<u32> {
        let grad = self.handles.tensor(grad)?;
        let y = gpu::interpolate_positions_backward(&mut self.stream, grad, from, to)?;
        self.handles.add_tensor(y)
    }

    /// [B, D] back into [B, tokens, D].
    pub fn pool_backward(&mut self, grad: u32, kind: &str, tokens: usize) -> Result<u32> {
        let grad = self.handles.tensor(grad)?;
        let y = gpu::pool_backward(&mut self.stream, grad, pooling(kind)?, tokens)?;
        self.handles.add_tensor(y)
    }

    /// Mean cross-entropy with label smoothing.
    pub fn cross_entropy_smoothed(
        &mut self,
        logits: u32,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let y = gpu::cross_entropy_smoothed(&mut self.stream, logits, labels, smoothing)?;
        self.handles.add_tensor(y)
    }

    /// The gradient of cross-entropy by the logits.
    pub fn cross_entropy_backward(
        &mut self,
        logits: u32,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let y = gpu::cross_entropy_backward(&mut self.stream, logits, labels, smoothing)?;
        self.handles.add_tensor(y)
    }

    /// The gradient of the mean squared error.
    pub fn mse_loss_backward(&mut self, x: u32, target: u32) -> Result<u32> {
        let (x, target) = (self.handles.tensor(x)?, self.handles.tensor(target)?);
        let y = gpu::mse_loss_backward(&mut self.stream, x, target)?;
        self.handles.add_tensor(y)
    }

    /// The gradient of the binary cross-entropy with logits.
    pub fn bce_with_logits_backward(&mut self, logits: u32, target: u32) -> Result<u32> {
        let (logits, target) = (self.handles.tensor(logits)?, self.handles.tensor(target)?);
        let y = gpu::bce_with_logits_backward(&mut self.stream, logits, target)?;
        self.handles.add_tensor(y)
    }

    /// x + y.
    pub fn add(&mut self, x: u32, y: u32) -> Result<u32> {
        let (x, y) = (self.handles.tensor(x)?, self.handles.tensor(y)?);
        let sum = gpu::add(&mut self.stream, x, y)?;
        self.handles.add_tensor(sum)
    }

    /// Dropout; its gradient is itself.
    pub fn dropout(&mut self, x: u32, dropout: Dropout) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let y = gpu::dropout(&mut self.stream, x, dropout)?;
        self.handles.add_tensor(y)
    }

    /// target += scale · x.
    pub fn accumulate(&mut self, target: u32, x: u32, scale: f32) -> Result<()> {
        let [target, x] = self.handles.tensors_mut([target, x])?;
        gpu::accumulate(&mut self.stream, target, x, scale)
    }

    /// The sum of squares: [1].
    pub fn sum_of_squares(&mut self, x: u32) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let y = gpu::sum_of_squares(&mut self.stream, x)?;
        self.handles.add_tensor(y)
    }

    /// One step of AdamW.
    pub fn adamw_step(&mut self, tensors: [u32; 4], options: AdamW) -> Result<()> {
        let [parameter, gradient, m, v] = self.handles.tensors_mut(tensors)?;
        gpu::adamw_step(&mut self.stream, parameter, gradient, m, v, options)
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
            return gpu::sgd_step(&mut self.stream, parameter, gradient, None, options);
        };
        let [parameter, gradient, momentum] =
            self.handles.tensors_mut([parameter, gradient, momentum])?;
        gpu::sgd_step(
            &mut self.stream,
            parameter,
            gradient,
            Some(momentum),
            options,
        )
    }

    /// One step of LARS.
    pub fn lars_step(&mut self, tensors: [u32; 3], options: Lars) -> Result<()> {
        let [parameter, gradient, momentum] = self.handles.tensors_mut(tensors)?;
        gpu::lars_step(&mut self.stream, parameter, gradient, momentum, options)
    }

    pub(super) fn add_all<const N: usize>(&mut self, tensors: [GpuTensor; N]) -> Result<[u32; N]> {
        let mut handles = [0; N];
        for (handle, tensor) in handles.iter_mut().zip(tensors) {
            *handle = self.handles.add_tensor(tensor)?;
        }
        Ok(handles)
    }
}
