//! Element-wise ops: separate activations and their gradients, dropout, sums, and the gradients of losses over pairs.

use bytemuck::NoUninit;
use vit_msn_tensor::{Activation, Dropout, Error, Result, check_momentum, format_dims};

use super::dropout::{DROPOUT, Mask};
use super::{LINE, cost, fold_rows};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

const SOURCES: &[&str] = &[
    include_str!("parts/activation.wgsl"),
    DROPOUT,
    include_str!("elementwise.wgsl"),
];

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    count: u32,
    scale: f32,
    mask: Mask,
}

/// An op's parameters besides its operands.
#[derive(Clone, Copy)]
struct Settings {
    activation: Activation,
    scale: f32,
    mask: Mask,
}

const PLAIN: Settings = Settings {
    activation: Activation::Identity,
    scale: 1.0,
    mask: Mask::NONE,
};

/// activation(x).
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn activate(stream: &mut Stream, x: &GpuTensor, activation: Activation) -> Result<GpuTensor> {
    let settings = Settings {
        activation,
        ..PLAIN
    };
    pairwise(stream, "apply_activation", [x, x], settings)
}

/// grad · activation′(x), where x is the activation's input. The derivative of relu at 0 is 0, as in PyTorch.
///
/// # Errors
/// INVALID_ARGUMENT if the shapes differ, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn activate_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    x: &GpuTensor,
    activation: Activation,
) -> Result<GpuTensor> {
    let settings = Settings {
        activation,
        ..PLAIN
    };
    pairwise(stream, "activate_backward", [grad, x], settings)
}

/// x + y.
///
/// # Errors
/// As [`activate_backward`].
pub fn add(stream: &mut Stream, x: &GpuTensor, y: &GpuTensor) -> Result<GpuTensor> {
    pairwise(stream, "add", [x, y], PLAIN)
}

/// target += scale · x.
///
/// # Errors
/// As [`activate_backward`].
pub fn accumulate(
    stream: &mut Stream,
    target: &mut GpuTensor,
    x: &GpuTensor,
    scale: f32,
) -> Result<()> {
    x.expect("The tensor to accumulate", &[target.len()])?;
    let settings = Settings { scale, ..PLAIN };
    let (reads, writes) = ([x.binding()], [target.binding()]);
    record(stream, "accumulate", x.len(), &reads, &writes, settings)
}

/// target = momentum · target + (1 − momentum) · source.
///
/// # Errors
/// As [`activate_backward`], and INVALID_ARGUMENT unless the momentum is between 0 and 1.
pub fn ema(
    stream: &mut Stream,
    target: &mut GpuTensor,
    source: &GpuTensor,
    momentum: f64,
) -> Result<()> {
    check_momentum(momentum)?;
    source.expect("The source of a moving average", &[target.len()])?;
    let settings = Settings {
        // Near 1, the momentum has fewer digits than 1 − momentum.
        scale: (1.0 - momentum) as f32,
        ..PLAIN
    };
    let (reads, writes) = ([source.binding()], [target.binding()]);
    record(stream, "ema", source.len(), &reads, &writes, settings)
}

/// The gradient of [`crate::mse_loss`] with respect to its predictions, 2·(x − target) / count.
///
/// # Errors
/// As [`activate_backward`].
pub fn mse_loss_backward(
    stream: &mut Stream,
    x: &GpuTensor,
    target: &GpuTensor,
) -> Result<GpuTensor> {
    pairwise(stream, "mse_backward", [x, target], mean_over(x))
}

/// The gradient of [`crate::bce_with_logits`] with respect to the logits, (σ(x) − target) / count.
///
/// # Errors
/// As [`activate_backward`].
pub fn bce_with_logits_backward(
    stream: &mut Stream,
    logits: &GpuTensor,
    target: &GpuTensor,
) -> Result<GpuTensor> {
    let settings = mean_over(logits);
    pairwise(
        stream,
        "bce_with_logits_backward",
        [logits, target],
        settings,
    )
}

fn mean_over(x: &GpuTensor) -> Settings {
    Settings {
        scale: (1.0 / x.len() as f64) as f32,
        ..PLAIN
    }
}

/// Zeroes each element with the dropout's probability and divides the others by 1 − probability. The generator that
/// the CPU's dropout documents selects the elements, so that engines agree and the gradient is the same op with the
/// same seed.
///
/// # Errors
/// INVALID_ARGUMENT for a probability outside [0, 1], UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn dropout(stream: &mut Stream, x: &GpuTensor, dropout: Dropout) -> Result<GpuTensor> {
    let settings = Settings {
        mask: Mask::new(dropout)?,
        ..PLAIN
    };
    pairwise(stream, "dropout", [x, x], settings)
}

/// INVALID_ARGUMENT unless both have the same shape.
pub(super) fn check_same_shape(x: &GpuTensor, y: &GpuTensor) -> Result<()> {
    if x.dims() == y.dims() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "Tensors of the shapes {} and {} don't match: both must have the same shape.",
        format_dims(x.dims()),
        format_dims(y.dims())
    )))
}

fn pairwise(
    stream: &mut Stream,
    name: &'static str,
    [x, other]: [&GpuTensor; 2],
    settings: Settings,
) -> Result<GpuTensor> {
    check_same_shape(x, other)?;
    let y = stream.uninit(x.dims())?;
    let (reads, writes) = ([x.binding(), other.binding()], [y.binding()]);
    record(stream, name, x.len(), &reads, &writes, settings)?;
    Ok(y)
}

fn record(
    stream: &mut Stream,
    name: &'static str,
    count: usize,
    reads: &[Binding],
    writes: &[Binding],
    settings: Settings,
) -> Result<()> {
    stream.record(Op {
        kernel: Kernel {
            name,
            sources: SOURCES,
            entry_point: name,
        },
        constants: (&["ACTIVATION"], &[settings.activation.code()]),
        uniforms: Params {
            count: count as u32,
            scale: settings.scale,
            mask: settings.mask,
        },
        reads,
        writes,
        workgroups: fold_rows(count.div_ceil(LINE)),
        cost: cost(3 * count as u64, 4 * count as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream, values};

    #[test]
    fn activations_and_derivatives_match_the_definitions() {
        let Some(mut stream) = stream() else { return };
        // Avoids relu's corner.
        let x: Vec<f32> = (-9_001..9_000).map(|v| (v as f32 + 0.5) * 2e-3).collect();
        let grad = values(x.len(), 1);
        let x_gpu = stream.upload(&x, &[x.len()]).unwrap();
        let grad_gpu = stream.upload(&grad, &[x.len()]).unwrap();
        for &act in Activation::ALL {
            let y = activate(&mut stream, &x_gpu, act).unwrap();
            let expected: Vec<f64> = x.iter().map(|&v| act.definition(v.into())).collect();
            assert_close(&read(&mut stream, &y), &expected, 1e-6);
            let y = activate_backward(&mut stream, &grad_gpu, &x_gpu, act).unwrap();
            let step = 1e-5;
            let slope =
                |x: f64| (act.definition(x + step) - act.definition(x - step)) / (2.0 * step);
            let pairs = x.iter().zip(&grad);
            let expected: Vec<f64> = pairs
                .map(|(&x, &g)| f64::from(g) * slope(x.into()))
                .collect();
            assert_close(&read(&mut stream, &y), &expected, 2e-6);
        }
    }

    #[test]
    fn derivatives_far_out_are_their_limits() {
        let Some(mut stream) = stream() else { return };
        let x = [f32::MIN, -1e20, -200.0, 200.0, 1e20, f32::MAX];
        let x = stream.upload(&x, &[6]).unwrap();
        let grad = stream.upload(&[1.0; 6], &[6]).unwrap();
        for &act in Activation::ALL.iter().skip(1) {
            let y = activate_backward(&mut stream, &grad, &x, act).unwrap();
            let (below, above) = match act {
                Activation::LeakyRelu => (0.01, 1.0),
                Activation::Relu6
                | Activation::Tanh
                | Activation::Sigmoid
                | Activation::Gelu10
                | Activation::Laplace => (0.0, 0.0),
                // Unbounded.
                Activation::Relu2 => continue,
                _ => (0.0, 1.0),
            };
            let expected = [below, below, below, above, above, above];
            assert_close(&read(&mut stream, &y), &expected, 1e-6);
        }
        let zero = stream.upload(&[0.0; 6], &[6]).unwrap();
        let y = activate_backward(&mut stream, &grad, &zero, Activation::Relu).unwrap();
        assert_eq!(read(&mut stream, &y), [0.0; 6]);
    }

    #[test]
    fn sums_and_gradients_of_losses_match_the_definitions() {
        on_shapes([1usize..40, 1usize..300], |stream, dims| {
            let ((x, x_gpu), (t, t_gpu)) = (random(stream, &dims, 1), random(stream, &dims, 2));
            let count = x.len() as f64;
            let map = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                let pairs = x.iter().zip(&t);
                pairs.map(|(&x, &t)| f(x.into(), t.into())).collect()
            };
            let y = add(stream, &x_gpu, &t_gpu).unwrap();
            assert_eq!(y.dims(), dims);
            assert_close(&read(stream, &y), &map(&|x, t| x + t), 1e-6);
            let y = mse_loss_backward(stream, &x_gpu, &t_gpu).unwrap();
            assert_close(&read(stream, &y), &map(&|x, t| 2.0 * (x - t) / count), 1e-6);
            let y = bce_with_logits_backward(stream, &x_gpu, &t_gpu).unwrap();
            let slope = |x: f64, t: f64| (1.0 / (1.0 + (-x).exp()) - t) / count;
            assert_close(&read(stream, &y), &map(&slope), 1e-6);
            let (_, mut sum) = random(stream, &dims, 2);
            accumulate(stream, &mut sum, &x_gpu, -0.5).unwrap();
            assert_close(&read(stream, &sum), &map(&|x, t| t - 0.5 * x), 1e-6);
        });
    }

    #[test]
    fn more_elements_than_one_dimension_of_workgroups() {
        let Some(mut stream) = stream() else { return };
        let (x, x_gpu) = random(&mut stream, &[65_535 * 64 + 100], 1);
        let y = add(&mut stream, &x_gpu, &x_gpu).unwrap();
        let expected: Vec<f32> = x.iter().map(|v| 2.0 * v).collect();
        assert!(read(&mut stream, &y) == expected);
    }

    #[test]
    fn dropout_has_the_documented_mask() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0; 12], &[12]).unwrap();
        let mut run = |probability, seed| {
            let y = dropout(&mut stream, &x, Dropout { probability, seed }).unwrap();
            read(&mut stream, &y)
        };
        // As in the CPU's test, computed from the definition by another program.
        let expected = [2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 0.0];
        assert_eq!(run(0.5, 42), expected);
        assert_eq!(run(0.0, 3), [1.0; 12]);
        assert_eq!(run(1.0, 3), [0.0; 12]);
        for probability in [-0.1, 1.5, f64::NAN] {
            let result = dropout(
                &mut stream,
                &x,
                Dropout {
                    probability,
                    seed: 0,
                },
            );
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
    }

    #[test]
    fn shapes_that_differ_are_errors() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[2, 3], 1);
        let (_, mut y) = random(&mut stream, &[4], 1);
        assert_eq!(code(add(&mut stream, &x, &y)), "INVALID_ARGUMENT");
        assert_eq!(
            code(mse_loss_backward(&mut stream, &x, &y)),
            "INVALID_ARGUMENT"
        );
        let act = Activation::Gelu;
        let result = activate_backward(&mut stream, &x, &y, act);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = accumulate(&mut stream, &mut y, &x, 1.0);
        assert_eq!(code(result), "INVALID_ARGUMENT");
    }

    #[test]
    fn moving_averages_take_their_share_of_the_source() {
        let Some(mut stream) = stream() else { return };
        let (start, source) = (values(1_003, 1), values(1_003, 2));
        let source_gpu = stream.upload(&source, &[1_003]).unwrap();
        for momentum in [0.0, 0.3, 0.996, 1.0] {
            let mut target = stream.upload(&start, &[1_003]).unwrap();
            ema(&mut stream, &mut target, &source_gpu, momentum).unwrap();
            let average =
                |(&t, &s): (&f32, &f32)| momentum * f64::from(t) + (1.0 - momentum) * f64::from(s);
            let expected: Vec<f64> = start.iter().zip(&source).map(average).collect();
            assert_close(&read(&mut stream, &target), &expected, 2e-7);
        }
        let mut short = stream.upload(&[1.0], &[1]).unwrap();
        for momentum in [0.5, 1.5] {
            let result = ema(&mut stream, &mut short, &source_gpu, momentum);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
    }
}
