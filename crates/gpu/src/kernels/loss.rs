//! The losses of the reference implementation.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, check_len};

use super::{REDUCE_CONSTANTS, cost, fold_rows, lanes, reducing};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

/// The label that cross-entropy ignores.
const IGNORE_INDEX: i32 = -100;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    count: f32,
    smoothing: f32,
}

/// The mean cross-entropy of logits `[labels.len(), classes]` over the labels that aren't −100, as `[1]`.
///
/// # Errors
/// INVALID_ARGUMENT for another shape, for a label that isn't a class (named in the error), or if every label is
/// ignored; UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn cross_entropy(stream: &mut Stream, logits: &GpuTensor, labels: &[i32]) -> Result<GpuTensor> {
    cross_entropy_smoothed(stream, logits, labels, 0.0)
}

/// [`cross_entropy`] with label smoothing s as in PyTorch: the target is (1 − s)·one_hot + s / classes.
///
/// # Errors
/// As [`cross_entropy`], and INVALID_ARGUMENT for s outside [0, 1].
pub fn cross_entropy_smoothed(
    stream: &mut Stream,
    logits: &GpuTensor,
    labels: &[i32],
    smoothing: f64,
) -> Result<GpuTensor> {
    let count = check_classes(logits, labels, smoothing)?;
    let table = stream.upload_table(labels, "The labels")?;
    let y = stream.uninit(&[1])?;
    let target = (table.binding(), smoothing);
    record(stream, "cross_entropy", [logits, &y], target, count, [1; 3])?;
    Ok(y)
}

/// The gradient of [`cross_entropy_smoothed`] with respect to the logits, (softmax − target) / count. Rows of ignored
/// labels get 0.
///
/// # Errors
/// As [`cross_entropy_smoothed`].
pub fn cross_entropy_backward(
    stream: &mut Stream,
    logits: &GpuTensor,
    labels: &[i32],
    smoothing: f64,
) -> Result<GpuTensor> {
    let count = check_classes(logits, labels, smoothing)?;
    let table = stream.upload_table(labels, "The labels")?;
    let y = stream.uninit(logits.dims())?;
    let name = "cross_entropy_backward";
    let target = (table.binding(), smoothing);
    let workgroups = fold_rows(labels.len());
    record(stream, name, [logits, &y], target, count, workgroups)?;
    Ok(y)
}

/// The number of labels that aren't ignored.
fn check_classes(logits: &GpuTensor, labels: &[i32], smoothing: f64) -> Result<usize> {
    if !(0.0..=1.0).contains(&smoothing) {
        return Err(Error::InvalidArgument(format!(
            "label_smoothing must be from 0 to 1, got {smoothing}."
        )));
    }
    let [_, classes] = logits.shape("The logits", ["batch", "classes"])?;
    check_len("The logits", logits.len(), &[labels.len(), classes])?;
    check_labels(labels, classes)
}

/// The number of labels that aren't ignored.
fn check_labels(labels: &[i32], classes: usize) -> Result<usize> {
    let mut count = 0;
    for (index, &label) in labels.iter().enumerate() {
        if label == IGNORE_INDEX {
            continue;
        }
        if usize::try_from(label).is_ok_and(|class| class < classes) {
            count += 1;
            continue;
        }
        return Err(Error::InvalidArgument(format!(
            "Label {index} is {label}, but the model has {classes} classes: use 0 to {}, or {IGNORE_INDEX} to ignore it.",
            classes.saturating_sub(1)
        )));
    }
    if count == 0 {
        return Err(Error::InvalidArgument(
            "A loss needs at least one label that isn't ignored.".to_string(),
        ));
    }
    Ok(count)
}

/// The mean squared error over all elements, as `[1]`.
///
/// # Errors
/// INVALID_ARGUMENT if the lengths differ, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn mse_loss(
    stream: &mut Stream,
    predictions: &GpuTensor,
    targets: &GpuTensor,
) -> Result<GpuTensor> {
    targets.expect("The targets", &[predictions.len()])?;
    mean_over_pairs(stream, "mse_loss", predictions, targets)
}

/// The mean binary cross-entropy of logits and targets in 0..=1 over all elements, as `[1]`, computed without
/// overflow.
///
/// # Errors
/// As [`mse_loss`].
pub fn bce_with_logits(
    stream: &mut Stream,
    logits: &GpuTensor,
    targets: &GpuTensor,
) -> Result<GpuTensor> {
    targets.expect("The targets", &[logits.len()])?;
    mean_over_pairs(stream, "bce_with_logits", logits, targets)
}

fn mean_over_pairs(
    stream: &mut Stream,
    name: &'static str,
    x: &GpuTensor,
    targets: &GpuTensor,
) -> Result<GpuTensor> {
    let y = stream.uninit(&[1])?;
    let target = (targets.binding(), 0.0);
    record(stream, name, [x, &y], target, targets.len(), [1; 3])?;
    Ok(y)
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    [x, y]: [&GpuTensor; 2],
    (target, smoothing): (Binding, f64),
    count: usize,
    workgroups: [usize; 3],
) -> Result<()> {
    let (rows, width) = x.rows();
    let lanes = lanes(stream.context());
    stream.record(Op {
        kernel: Kernel {
            name: entry_point,
            sources: reducing!(stream.context(), "parts/row_softmax.wgsl", "loss.wgsl"),
            entry_point,
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: Params {
            rows: rows as u32,
            width: width as u32,
            count: count as f32,
            smoothing: smoothing as f32,
        },
        reads: &[x.binding(), target],
        writes: &[y.binding()],
        workgroups,
        cost: cost(2 * x.len() as u64, 8 * x.len() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};

    #[test]
    fn odd_shapes_match_the_definitions() {
        let shapes = ([1usize..9, 1usize..300], 1f32..30.0);
        on_shapes(shapes, |stream, ([batch, classes], size)| {
            let (x, _) = random(stream, &[batch, classes], 1);
            let logits: Vec<f32> = x.iter().map(|v| v * size).collect();
            let logits_gpu = stream.upload(&logits, &[batch, classes]).unwrap();
            let targets: Vec<f32> = x.iter().rev().map(|v| 0.5 * v + 0.5).collect();
            let targets_gpu = stream.upload(&targets, &[batch, classes]).unwrap();
            let labels: Vec<i32> = (0..batch)
                .map(|row| {
                    if row % 3 == 1 {
                        -100
                    } else {
                        (row * 7 % classes) as i32
                    }
                })
                .collect();
            let losses = [
                cross_entropy(stream, &logits_gpu, &labels).unwrap(),
                mse_loss(stream, &logits_gpu, &targets_gpu).unwrap(),
                bce_with_logits(stream, &logits_gpu, &targets_gpu).unwrap(),
            ]
            .map(|loss| read(stream, &loss)[0]);
            let pairs = || {
                logits
                    .iter()
                    .zip(&targets)
                    .map(|(&x, &t)| (f64::from(x), f64::from(t)))
            };
            let bce = |(x, t): (f64, f64)| x.max(0.0) - x * t + (-x.abs()).exp().ln_1p();
            let counted = labels.iter().filter(|&&label| label >= 0).count() as f64;
            let entropy: f64 = logits
                .chunks(classes)
                .zip(&labels)
                .filter(|&(_, &label)| label >= 0)
                .map(|(row, &label)| {
                    let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
                    sum.ln() - f64::from(row[label as usize])
                })
                .sum();
            let count = logits.len() as f64;
            let expected = [
                entropy / counted,
                pairs().map(|(x, t)| (x - t).powi(2)).sum::<f64>() / count,
                pairs().map(bce).sum::<f64>() / count,
            ];
            assert_close(&losses, &expected, 2e-6);
        });
    }

    #[test]
    fn smoothed_losses_and_gradients_match_the_definitions() {
        let shapes = ([1usize..9, 1usize..100], 1f32..10.0, 0.0f64..1.0);
        on_shapes(shapes, |stream, ([batch, classes], size, smoothing)| {
            let (x, _) = random(stream, &[batch, classes], 1);
            let logits: Vec<f32> = x.iter().map(|v| v * size).collect();
            let logits_gpu = stream.upload(&logits, &[batch, classes]).unwrap();
            let label_of = |row: usize| match row % 3 {
                1 => -100,
                _ => (row * 7 % classes) as i32,
            };
            let labels: Vec<i32> = (0..batch).map(label_of).collect();
            let counted = labels.iter().filter(|&&label| label >= 0).count() as f64;
            let (mut loss, mut d_logits) = (0.0, vec![0.0; logits.len()]);
            for (row, &label) in labels.iter().enumerate().filter(|&(_, &label)| label >= 0) {
                let first = row * classes;
                let exp = |i: usize| f64::from(logits[first + i]).exp();
                let total: f64 = (0..classes).map(exp).sum();
                for i in 0..classes {
                    let one_hot = if i as i32 == label {
                        1.0 - smoothing
                    } else {
                        0.0
                    };
                    let target = one_hot + smoothing / classes as f64;
                    let prob = exp(i) / total;
                    loss -= target * prob.ln() / counted;
                    d_logits[first + i] = (prob - target) / counted;
                }
            }
            let y = cross_entropy_smoothed(stream, &logits_gpu, &labels, smoothing).unwrap();
            assert_close(&read(stream, &y), &[loss], 3e-6);
            let y = cross_entropy_backward(stream, &logits_gpu, &labels, smoothing).unwrap();
            assert_close(&read(stream, &y), &d_logits, 2e-6);
        });
    }

    #[test]
    fn huge_logits_give_finite_gradients_and_smoothing_is_a_share() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1e30, -1e30], &[1, 2]).unwrap();
        let y = cross_entropy_backward(&mut stream, &x, &[1], 0.0).unwrap();
        assert_eq!(read(&mut stream, &y), [1.0, -1.0]);
        for smoothing in [-0.1, 1.1, f64::NAN] {
            let result = cross_entropy_smoothed(&mut stream, &x, &[1], smoothing);
            assert_eq!(code(result), "INVALID_ARGUMENT");
            let result = cross_entropy_backward(&mut stream, &x, &[1], smoothing);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
    }

    #[test]
    fn huge_logits_give_finite_losses() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1e4, 0.0], &[1, 2]).unwrap();
        let target = stream.upload(&[1.0, 0.0], &[1, 2]).unwrap();
        let loss = cross_entropy(&mut stream, &x, &[1]).unwrap();
        assert_close(&read(&mut stream, &loss), &[1e4], 1e-6);
        let loss = bce_with_logits(&mut stream, &x, &target).unwrap();
        assert_close(&read(&mut stream, &loss), &[0.5 * 2f64.ln()], 1e-6);
    }

    #[test]
    fn labels_that_are_no_class_and_wrong_shapes_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[2, 2], 1);
        let (_, other) = random(&mut stream, &[3], 1);
        for label in [2, -1, i32::MAX, i32::MIN] {
            let error = cross_entropy(&mut stream, &x, &[0, label]).err().unwrap();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("Label 1 is {label}, but the model has 2 classes")),
                "{error}"
            );
        }
        let error = cross_entropy(&mut stream, &x, &[-100, -100]).err().unwrap();
        assert!(error.to_string().contains("isn't ignored"), "{error}");
        assert_eq!(
            code(cross_entropy(&mut stream, &x, &[0])),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            code(cross_entropy(&mut stream, &other, &[0; 3])),
            "INVALID_ARGUMENT"
        );
        assert_eq!(code(mse_loss(&mut stream, &x, &other)), "INVALID_ARGUMENT");
        assert_eq!(
            code(bce_with_logits(&mut stream, &x, &other)),
            "INVALID_ARGUMENT"
        );
    }
}
