//! What self-supervised pre-training needs beside learning, on handles.

use vit_msn_gpu as gpu;
use vit_msn_tensor::{MsnLoss, MsnTargets, Result};

use super::engine::Engine;

impl Engine {
    /// Batch normalisation by the batch's statistics: [y, mean, unbiased variance].
    pub fn batch_norm(&mut self, x: u32, weight: u32, bias: u32, eps: f32) -> Result<[u32; 3]> {
        let [x, weight, bias] = [
            self.handles.tensor(x)?,
            self.handles.tensor(weight)?,
            self.handles.tensor(bias)?,
        ];
        let out = gpu::batch_norm(&mut self.stream, x, weight, bias, eps)?;
        self.add_all([out.y, out.mean, out.variance])
    }

    /// The gradients of batch normalisation by x, weight and bias.
    pub fn batch_norm_backward(
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
        let by = gpu::batch_norm_backward(&mut self.stream, grad, x, weight, eps)?;
        self.add_all([by.x, by.weight, by.bias])
    }

    /// Batch normalisation by given statistics: weight, bias, mean and variance.
    pub fn batch_norm_inference(&mut self, x: u32, given: [u32; 4], eps: f32) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let [weight, bias, mean, variance] = given.map(|handle| self.handles.tensor(handle));
        let given = [weight?, bias?, mean?, variance?];
        let y = gpu::batch_norm_inference(&mut self.stream, x, given, eps)?;
        self.handles.add_tensor(y)
    }

    /// Cosine similarities with prototypes over a temperature.
    pub fn prototype_logits(&mut self, x: u32, prototypes: u32, temperature: f64) -> Result<u32> {
        let (x, prototypes) = (self.handles.tensor(x)?, self.handles.tensor(prototypes)?);
        let y = gpu::prototype_logits(&mut self.stream, x, prototypes, temperature)?;
        self.handles.add_tensor(y)
    }

    /// Their gradients by x and prototypes.
    pub fn prototype_logits_backward(
        &mut self,
        grad: u32,
        x: u32,
        prototypes: u32,
        temperature: f64,
    ) -> Result<[u32; 2]> {
        let [grad, x, prototypes] = [
            self.handles.tensor(grad)?,
            self.handles.tensor(x)?,
            self.handles.tensor(prototypes)?,
        ];
        let stream = &mut self.stream;
        let by = gpu::prototype_logits_backward(stream, grad, x, prototypes, temperature)?;
        self.add_all(by)
    }

    /// The rows of x, then those of y.
    pub fn concat_rows(&mut self, x: u32, y: u32) -> Result<u32> {
        let (x, y) = (self.handles.tensor(x)?, self.handles.tensor(y)?);
        let joined = gpu::concat_rows(&mut self.stream, x, y)?;
        self.handles.add_tensor(joined)
    }

    /// The first `rows` rows of a gradient, and the others.
    pub fn concat_rows_backward(&mut self, grad: u32, rows: usize) -> Result<[u32; 2]> {
        let grad = self.handles.tensor(grad)?;
        let by = gpu::concat_rows_backward(&mut self.stream, grad, rows)?;
        self.add_all(by)
    }

    /// MSN's targets from logits.
    pub fn msn_targets(&mut self, logits: u32, options: MsnTargets) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let y = gpu::msn_targets(&mut self.stream, logits, options)?;
        self.handles.add_tensor(y)
    }

    /// MSN's loss and its terms: [4].
    pub fn msn_loss(&mut self, logits: u32, targets: u32, weights: MsnLoss) -> Result<u32> {
        let (logits, targets) = (self.handles.tensor(logits)?, self.handles.tensor(targets)?);
        let y = gpu::msn_loss(&mut self.stream, logits, targets, weights)?;
        self.handles.add_tensor(y)
    }

    /// The gradient of MSN's loss by the logits.
    pub fn msn_loss_backward(
        &mut self,
        logits: u32,
        targets: u32,
        weights: MsnLoss,
    ) -> Result<u32> {
        let (logits, targets) = (self.handles.tensor(logits)?, self.handles.tensor(targets)?);
        let y = gpu::msn_loss_backward(&mut self.stream, logits, targets, weights)?;
        self.handles.add_tensor(y)
    }

    /// target = momentum · target + (1 − momentum) · source.
    pub fn ema(&mut self, target: u32, source: u32, momentum: f64) -> Result<()> {
        let [target, source] = self.handles.tensors_mut([target, source])?;
        gpu::ema(&mut self.stream, target, source, momentum)
    }
}
