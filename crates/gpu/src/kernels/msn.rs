//! The training objective of Masked Siamese Networks (Assran et al. 2022, arXiv 2204.07141): targets and loss.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, MsnLoss, MsnTargets, Result, views_of};

use super::sums::column_sums;
use super::{REDUCE, REDUCE_CONSTANTS, cost, fold_rows, lanes};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    images: u32,
    scale: f32,
    me_max_weight: f32,
    entropy_weight: f32,
}

/// Targets from logits `[B, K]`: softmax, sharpened to p^(1/T) / Σ. Then each Sinkhorn iteration divides columns by
/// their sums and rows by theirs.
///
/// # Errors
/// INVALID_ARGUMENT for another shape or an option out of range, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn msn_targets(
    stream: &mut Stream,
    logits: &GpuTensor,
    options: MsnTargets,
) -> Result<GpuTensor> {
    options.check()?;
    let [rows, width] = logits.shape("The logits", ["batch", "prototypes"])?;
    let params = Params {
        rows: rows as u32,
        width: width as u32,
        images: rows as u32,
        // softmax(x)^(1/T) / Σ is softmax(x / T).
        scale: (1.0 / options.temperature) as f32,
        me_max_weight: 0.0,
        entropy_weight: 0.0,
    };
    let y = stream.uninit(logits.dims())?;
    record(
        stream,
        "sharpen",
        params,
        &[logits.binding()],
        &[y.binding()],
    )?;
    for _ in 0..options.sinkhorn_iterations {
        let sums = column_sums(stream, y.binding(), [rows, width, width], &[width])?;
        record(stream, "balance", params, &[sums.binding()], &[y.binding()])?;
    }
    Ok(y)
}

/// The loss of logits `[V · B, K]` with targets `[B, K]`, and its terms, as `[4]`: loss, cross_entropy, me_max,
/// entropy.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or a weight isn't finite, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn msn_loss(
    stream: &mut Stream,
    logits: &GpuTensor,
    targets: &GpuTensor,
    weights: MsnLoss,
) -> Result<GpuTensor> {
    let params = check(logits, targets, weights)?;
    let Anchors { sums, row_terms } = Anchors::of(stream, logits, targets, params)?;
    let size = [params.rows as usize, 3, 2];
    let sums_of_terms = column_sums(stream, row_terms.binding(), size, &[2])?;
    let y = stream.uninit(&[4])?;
    let reads = [sums.binding(), sums_of_terms.binding()];
    record(stream, "loss", params, &reads, &[y.binding()])?;
    Ok(y)
}

/// The gradient of [`msn_loss`]'s loss with respect to the logits.
///
/// # Errors
/// As [`msn_loss`].
pub fn msn_loss_backward(
    stream: &mut Stream,
    logits: &GpuTensor,
    targets: &GpuTensor,
    weights: MsnLoss,
) -> Result<GpuTensor> {
    let params = check(logits, targets, weights)?;
    let Anchors { sums, row_terms } = Anchors::of(stream, logits, targets, params)?;
    let y = stream.uninit(logits.dims())?;
    let reads = [logits, targets, &sums, &row_terms].map(GpuTensor::binding);
    record(stream, "backward", params, &reads, &[y.binding()])?;
    Ok(y)
}

fn check(logits: &GpuTensor, targets: &GpuTensor, weights: MsnLoss) -> Result<Params> {
    weights.check()?;
    let [rows, width] = logits.shape("The logits", ["anchors", "prototypes"])?;
    let [images, others] = targets.shape("The targets", ["batch", "prototypes"])?;
    if width != others {
        return Err(Error::InvalidArgument(format!(
            "The targets have {others} prototypes, but the logits have {width}."
        )));
    }
    views_of(rows, images)?;
    Ok(Params {
        rows: rows as u32,
        width: width as u32,
        images: images as u32,
        scale: 1.0,
        me_max_weight: weights.me_max_weight as f32,
        entropy_weight: weights.entropy_weight as f32,
    })
}

/// Statistics of all anchors.
struct Anchors {
    /// Sums of the anchors' probabilities: `[width]`.
    sums: GpuTensor,
    /// Cross-entropy, entropy and ln Σ e^logit: `[rows, 3]`.
    row_terms: GpuTensor,
}

impl Anchors {
    fn of(
        stream: &mut Stream,
        logits: &GpuTensor,
        targets: &GpuTensor,
        params: Params,
    ) -> Result<Self> {
        let [rows, width] = [params.rows, params.width].map(|size| size as usize);
        let probs = stream.uninit(logits.dims())?;
        let row_terms = stream.uninit(&[rows, 3])?;
        let reads = [logits.binding(), targets.binding()];
        let writes = [probs.binding(), row_terms.binding()];
        record(stream, "anchors", params, &reads, &writes)?;
        let sums = column_sums(stream, probs.binding(), [rows, width, width], &[width])?;
        Ok(Self { sums, row_terms })
    }
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    params: Params,
    reads: &[Binding],
    writes: &[Binding],
) -> Result<()> {
    let lanes = lanes(stream.context());
    let (rows, count) = match entry_point {
        "loss" => (1, u64::from(params.width)),
        _ => (
            params.rows as usize,
            u64::from(params.rows) * u64::from(params.width),
        ),
    };
    stream.record(Op {
        kernel: Kernel {
            name: "msn",
            sources: &[
                REDUCE,
                include_str!("parts/row_softmax.wgsl"),
                include_str!("msn.wgsl"),
            ],
            entry_point,
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: params,
        reads,
        writes,
        workgroups: fold_rows(rows),
        cost: cost(5 * count, 8 * count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};
    use vit_msn_tensor::testing::{self as definition, numeric_gradient, sinkhorn, softmax, wide};

    const WEIGHTS: MsnLoss = MsnLoss {
        me_max_weight: 1.7,
        entropy_weight: 0.3,
    };

    fn scaled(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        values(count, seed).into_iter().map(|v| v * scale).collect()
    }

    #[test]
    fn targets_are_sharpened_and_balanced() {
        let shapes = ([1usize..90, 1usize..90], 0.2f64..2.0, 0u32..4);
        on_shapes(shapes, |stream, ([rows, k], temperature, iterations)| {
            let logits = scaled(rows * k, 1, 5.0);
            let logits_gpu = stream.upload(&logits, &[rows, k]).unwrap();
            let options = MsnTargets {
                temperature,
                sinkhorn_iterations: iterations,
            };
            let y = msn_targets(stream, &logits_gpu, options).unwrap();
            let sharp = |row: &[f32]| {
                softmax(
                    &row.iter()
                        .map(|&v| f64::from(v) / temperature)
                        .collect::<Vec<_>>(),
                )
            };
            let sharp: Vec<f64> = logits.chunks(k).flat_map(sharp).collect();
            assert_close(&read(stream, &y), &sinkhorn(&sharp, k, iterations), 2e-5);
        });
    }

    #[test]
    fn losses_and_gradients_match_the_definitions() {
        on_shapes(
            [1usize..4, 1usize..8, 1usize..20],
            |stream, [views, rows, k]| {
                let logits = scaled(views * rows * k, 2, 6.0);
                // Includes targets that don't sum to 1.
                let targets: Vec<f32> = values(rows * k, 5).into_iter().map(f32::abs).collect();
                let logits_gpu = stream.upload(&logits, &[views * rows, k]).unwrap();
                let targets_gpu = stream.upload(&targets, &[rows, k]).unwrap();
                let y = msn_loss(stream, &logits_gpu, &targets_gpu, WEIGHTS).unwrap();
                let expected = definition::msn_loss(&wide(&logits), &targets, k, WEIGHTS);
                assert_close(&read(stream, &y), &expected, 5e-6);
                let y = msn_loss_backward(stream, &logits_gpu, &targets_gpu, WEIGHTS).unwrap();
                let expected = numeric_gradient(&wide(&logits), 1e-5, |logits| {
                    definition::msn_loss(logits, &targets, k, WEIGHTS)[0]
                });
                assert_close(&read(stream, &y), &expected, 5e-6);
            },
        );
    }

    #[test]
    fn extremes_give_finite_numbers() {
        let Some(mut stream) = stream() else { return };
        let logits = [1e30, -1e30, -1e30, -1e30, 1e30, -1e30];
        let logits = stream.upload(&logits, &[2, 3]).unwrap();
        let options = MsnTargets {
            temperature: 0.25,
            sinkhorn_iterations: 3,
        };
        let targets = msn_targets(&mut stream, &logits, options).unwrap();
        assert_eq!(read(&mut stream, &targets), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        for y in [
            msn_loss(&mut stream, &logits, &targets, WEIGHTS).unwrap(),
            msn_loss_backward(&mut stream, &logits, &targets, WEIGHTS).unwrap(),
        ] {
            assert!(read(&mut stream, &y).iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |dims: &[usize]| random(&mut stream, dims, 1).1;
        let (logits, targets) = (tensor(&[5, 3]), tensor(&[2, 3]));
        let (narrow, row) = (tensor(&[5, 2]), tensor(&[3]));
        let endless = MsnLoss {
            me_max_weight: f64::INFINITY,
            entropy_weight: 0.0,
        };
        for (targets, weights) in [
            (&targets, WEIGHTS),
            (&narrow, WEIGHTS),
            (&row, WEIGHTS),
            (&logits, endless),
        ] {
            let result = msn_loss(&mut stream, &logits, targets, weights);
            assert_eq!(code(result), "INVALID_ARGUMENT");
            let result = msn_loss_backward(&mut stream, &logits, targets, weights);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
        let options = |temperature| MsnTargets {
            temperature,
            sinkhorn_iterations: 1,
        };
        let result = msn_targets(&mut stream, &logits, options(0.0));
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = msn_targets(&mut stream, &row, options(0.25));
        assert_eq!(code(result), "INVALID_ARGUMENT");
    }
}
