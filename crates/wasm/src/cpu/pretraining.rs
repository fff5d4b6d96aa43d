//! What self-supervised pre-training needs beside learning, on handles.

use vit_msn_cpu as cpu;
use vit_msn_cpu::{BatchNormGradients, BatchNormOutput};
use vit_msn_tensor::{Error, MsnLoss, MsnTargets, Result, Tensor, check_len};

use super::engine::{Engine, rank};

impl Engine {
    /// Batch normalisation by the batch's statistics: [y, mean, unbiased variance].
    pub fn batch_norm(&mut self, x: u32, weight: u32, bias: u32, eps: f32) -> Result<[u32; 3]> {
        let [x, weight, bias] = [
            self.handles.tensor(x)?,
            self.handles.tensor(weight)?,
            self.handles.tensor(bias)?,
        ];
        check_batch(x, weight)?;
        let mut y = Tensor::zeros(x.dims())?;
        let [mut mean, mut variance] =
            [Tensor::zeros(weight.dims())?, Tensor::zeros(weight.dims())?];
        let out = BatchNormOutput {
            y: y.data_mut(),
            mean: mean.data_mut(),
            variance: variance.data_mut(),
        };
        cpu::batch_norm(x.data(), weight.data(), bias.data(), eps, out)?;
        self.add_all([y, mean, variance])
    }

    /// The gradients of batch normalisation by x, weight and bias.
    pub fn batch_norm_backward(
        &mut self,
        grad: u32,
        x: u32,
        weight: u32,
        eps: f32,
    ) -> Result<[u32; 3]> {
        let [grad, x] = self.same_shape([grad, x])?;
        let weight = self.handles.tensor(weight)?;
        check_batch(x, weight)?;
        let mut by_x = Tensor::zeros(x.dims())?;
        let [mut by_weight, mut by_bias] =
            [Tensor::zeros(weight.dims())?, Tensor::zeros(weight.dims())?];
        let out = BatchNormGradients {
            x: by_x.data_mut(),
            weight: by_weight.data_mut(),
            bias: by_bias.data_mut(),
        };
        cpu::batch_norm_backward(grad.data(), x.data(), weight.data(), eps, out)?;
        self.add_all([by_x, by_weight, by_bias])
    }

    /// Batch normalisation by given statistics: weight, bias, mean and variance.
    pub fn batch_norm_inference(&mut self, x: u32, given: [u32; 4], eps: f32) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let [weight, bias, mean, variance] = given.map(|handle| self.handles.tensor(handle));
        let given = [weight?, bias?, mean?, variance?];
        check_batch(x, given[0])?;
        let given = given.map(Tensor::data);
        let mut out = Tensor::zeros(x.dims())?;
        cpu::batch_norm_inference(x.data(), given, eps, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Cosine similarities with prototypes over a temperature.
    pub fn prototype_logits(&mut self, x: u32, prototypes: u32, temperature: f64) -> Result<u32> {
        let (x, prototypes) = (self.handles.tensor(x)?, self.handles.tensor(prototypes)?);
        let ([rows, width], count) = prototype_shape(x, prototypes)?;
        let mut out = Tensor::zeros(&[rows, count])?;
        cpu::prototype_logits(
            x.data(),
            prototypes.data(),
            width,
            temperature,
            out.data_mut(),
        )?;
        self.handles.add_tensor(out)
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
        let ([_, width], _) = prototype_shape(x, prototypes)?;
        let (mut by_x, mut by_prototypes) =
            (Tensor::zeros(x.dims())?, Tensor::zeros(prototypes.dims())?);
        cpu::prototype_logits_backward(
            grad.data(),
            x.data(),
            prototypes.data(),
            width,
            temperature,
            [by_x.data_mut(), by_prototypes.data_mut()],
        )?;
        self.add_all([by_x, by_prototypes])
    }

    /// The rows of x, then those of y.
    pub fn concat_rows(&mut self, x: u32, y: u32) -> Result<u32> {
        let (x, y) = (self.handles.tensor(x)?, self.handles.tensor(y)?);
        let [rows, width] = rank(x.dims(), "Rows that are joined")?;
        let [other_rows, other_width] = rank(y.dims(), "Rows that are joined")?;
        if width != other_width {
            return Err(Error::InvalidArgument(format!(
                "Rows of {width} and of {other_width} values can't be joined."
            )));
        }
        let mut out = Tensor::zeros(&[rows.saturating_add(other_rows), width])?;
        cpu::concat_rows(x.data(), y.data(), out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// The first `rows` rows of a gradient, and the others.
    pub fn concat_rows_backward(&mut self, grad: u32, rows: usize) -> Result<[u32; 2]> {
        let grad = self.handles.tensor(grad)?;
        let [all, width] = rank(grad.dims(), "The gradient of joined rows")?;
        let rest = all.checked_sub(rows).ok_or_else(|| {
            Error::InvalidArgument(format!("The gradient of {all} joined rows has no {rows}."))
        })?;
        let (mut by_x, mut by_y) = (
            Tensor::zeros(&[rows, width])?,
            Tensor::zeros(&[rest, width])?,
        );
        cpu::concat_rows_backward(grad.data(), by_x.data_mut(), by_y.data_mut())?;
        self.add_all([by_x, by_y])
    }

    /// MSN's targets from logits.
    pub fn msn_targets(&mut self, logits: u32, options: MsnTargets) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let [_, prototypes] = rank(logits.dims(), "The logits")?;
        let mut out = Tensor::zeros(logits.dims())?;
        cpu::msn_targets(logits.data(), prototypes, options, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// MSN's loss and its terms: [4].
    pub fn msn_loss(&mut self, logits: u32, targets: u32, weights: MsnLoss) -> Result<u32> {
        let (logits, targets) = (self.handles.tensor(logits)?, self.handles.tensor(targets)?);
        let prototypes = same_width(logits, targets)?;
        let terms = cpu::msn_loss(logits.data(), targets.data(), prototypes, weights)?;
        self.tensor(terms.map(|term| term as f32).to_vec(), &[4])
    }

    /// The gradient of MSN's loss by the logits.
    pub fn msn_loss_backward(
        &mut self,
        logits: u32,
        targets: u32,
        weights: MsnLoss,
    ) -> Result<u32> {
        let (logits, targets) = (self.handles.tensor(logits)?, self.handles.tensor(targets)?);
        let prototypes = same_width(logits, targets)?;
        let mut out = Tensor::zeros(logits.dims())?;
        let (logits, targets) = (logits.data(), targets.data());
        cpu::msn_loss_backward(logits, targets, prototypes, weights, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// target = momentum · target + (1 − momentum) · source.
    pub fn ema(&mut self, target: u32, source: u32, momentum: f64) -> Result<()> {
        let [target, source] = self.handles.tensors_mut([target, source])?;
        cpu::ema(target.data_mut(), source.data(), momentum)
    }
}

/// x must be rows of as many columns as a batch norm has.
fn check_batch(x: &Tensor, weight: &Tensor) -> Result<()> {
    let [_, columns] = rank(x.dims(), "The input of a batch norm")?;
    check_len(
        "The weight of a batch norm",
        weight.data().len(),
        &[columns],
    )
}

/// ([rows, width], prototypes).
fn prototype_shape(x: &Tensor, prototypes: &Tensor) -> Result<([usize; 2], usize)> {
    let [rows, width] = rank(x.dims(), "What is compared with prototypes")?;
    let [count, _] = rank(prototypes.dims(), "The prototypes")?;
    check_len("The prototypes", prototypes.data().len(), &[count, width])?;
    Ok(([rows, width], count))
}

/// The columns of logits and targets.
fn same_width(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    let [_, prototypes] = rank(logits.dims(), "The logits")?;
    let [_, others] = rank(targets.dims(), "The targets")?;
    if prototypes == others {
        return Ok(prototypes);
    }
    Err(Error::InvalidArgument(format!(
        "The targets have {others} prototypes, and the logits {prototypes}."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(engine: &mut Engine, dims: &[usize]) -> u32 {
        let count = dims.iter().product::<usize>();
        let data = (0..count).map(|v| (v * 7 % 5) as f32 / 5.0).collect();
        engine.tensor(data, dims).unwrap()
    }

    fn dims(engine: &Engine, handle: u32) -> Vec<usize> {
        engine.handles.tensor(handle).unwrap().dims().to_vec()
    }

    const WEIGHTS: MsnLoss = MsnLoss {
        me_max_weight: 1.0,
        entropy_weight: 0.0,
    };

    #[test]
    fn results_have_the_shapes_that_the_ops_say() {
        let mut engine = Engine::default();
        let (x, weight) = (tensor(&mut engine, &[6, 5]), tensor(&mut engine, &[5]));
        let made = engine.batch_norm(x, weight, weight, 1e-5).unwrap();
        assert_eq!(
            made.map(|handle| dims(&engine, handle)),
            [vec![6, 5], vec![5], vec![5]]
        );
        let made = engine.batch_norm_backward(x, x, weight, 1e-5).unwrap();
        assert_eq!(
            made.map(|handle| dims(&engine, handle)),
            [vec![6, 5], vec![5], vec![5]]
        );
        let prototypes = tensor(&mut engine, &[4, 5]);
        let logits = engine.prototype_logits(x, prototypes, 0.1).unwrap();
        assert_eq!(dims(&engine, logits), [6, 4]);
        let [by_x, by_prototypes] = engine
            .prototype_logits_backward(logits, x, prototypes, 0.1)
            .unwrap();
        assert_eq!(dims(&engine, by_x), [6, 5]);
        assert_eq!(dims(&engine, by_prototypes), [4, 5]);
        let joined = engine.concat_rows(x, prototypes).unwrap();
        assert_eq!(dims(&engine, joined), [10, 5]);
        let [first, rest] = engine.concat_rows_backward(joined, 6).unwrap();
        assert_eq!(engine.handles.tensor(first), engine.handles.tensor(x));
        assert_eq!(
            engine.handles.tensor(rest),
            engine.handles.tensor(prototypes)
        );
        let pictures = tensor(&mut engine, &[3, 4]);
        let options = MsnTargets {
            temperature: 0.25,
            sinkhorn_iterations: 3,
        };
        let targets = engine.msn_targets(pictures, options).unwrap();
        assert_eq!(dims(&engine, targets), [3, 4]);
        let terms = engine.msn_loss(logits, targets, WEIGHTS).unwrap();
        assert_eq!(dims(&engine, terms), [4]);
        let by_logits = engine.msn_loss_backward(logits, targets, WEIGHTS).unwrap();
        assert_eq!(dims(&engine, by_logits), [6, 4]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let mut engine = Engine::default();
        let (x, y) = (tensor(&mut engine, &[2, 6]), tensor(&mut engine, &[6, 2]));
        let (row, cube) = (tensor(&mut engine, &[6]), tensor(&mut engine, &[1, 2, 6]));
        let codes = [
            engine.batch_norm(x, row, y, 1e-5).unwrap_err(),
            engine.batch_norm(cube, row, row, 1e-5).unwrap_err(),
            engine.batch_norm(y, row, row, 1e-5).unwrap_err(),
            engine.batch_norm_backward(x, y, row, 1e-5).unwrap_err(),
            engine
                .batch_norm_inference(x, [row, row, y, row], 1e-5)
                .unwrap_err(),
            engine.prototype_logits(x, y, 0.1).unwrap_err(),
            engine.prototype_logits(x, x, 0.0).unwrap_err(),
            engine.prototype_logits_backward(x, x, x, 0.1).unwrap_err(),
            engine.concat_rows(x, y).unwrap_err(),
            engine.concat_rows_backward(x, 3).unwrap_err(),
            engine.msn_loss(x, y, WEIGHTS).unwrap_err(),
            engine.msn_loss_backward(x, y, WEIGHTS).unwrap_err(),
            engine.ema(x, row, 0.5).unwrap_err(),
            engine.ema(x, x, 0.5).unwrap_err(),
        ]
        .map(|error| error.code());
        assert_eq!(codes, ["INVALID_ARGUMENT"; 14]);
        assert_eq!(engine.handles.live().0, 4);
    }
}
