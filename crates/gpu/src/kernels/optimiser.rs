//! One in-place step of an optimiser. Hyper-parameters are float64; values shared by all elements are computed in
//! float64 and rounded once.

use bytemuck::NoUninit;
use vit_msn_tensor::{AdamW, Lars, Result, Sgd};

use super::sums::sum_of_squares;
use super::{LINE, cost, fold_rows};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, Default, NoUninit)]
struct Params {
    count: u32,
    scale: f32,
    decay: f32,
    rate: f32,
    first: f32,
    second: f32,
    third: f32,
    correction: f32,
    epsilon: f32,
}

/// One step of AdamW like `torch.optim.AdamW`, with the formulas of the CPU's step. The moments `m` and `v` are zero
/// before the first step.
///
/// # Errors
/// INVALID_ARGUMENT if lengths differ or a hyper-parameter is out of range, UNSUPPORTED, ENGINE_DEAD.
pub fn adamw_step(
    stream: &mut Stream,
    parameter: &mut GpuTensor,
    gradient: &GpuTensor,
    m: &mut GpuTensor,
    v: &mut GpuTensor,
    options: AdamW,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    check_same("first moment", m, parameter)?;
    check_same("second moment", v, parameter)?;
    options.check()?;
    let power = |beta: f64| 1.0 - beta.powf(f64::from(options.step));
    let params = Params {
        count: parameter.len() as u32,
        scale: options.gradient_scale as f32,
        decay: (1.0 - options.learning_rate * options.weight_decay) as f32,
        rate: (options.learning_rate / power(options.beta1)) as f32,
        first: (1.0 - options.beta1) as f32,
        second: options.beta2 as f32,
        third: (1.0 - options.beta2) as f32,
        correction: power(options.beta2).sqrt().recip() as f32,
        epsilon: options.epsilon as f32,
    };
    let writes = [parameter.binding(), m.binding(), v.binding()];
    record(stream, "adamw_step", params, &[gradient.binding()], &writes)
}

/// One step of stochastic gradient descent like `torch.optim.SGD`, with dampening 0. `momentum` may be None if the
/// options' momentum is 0.
///
/// # Errors
/// As [`adamw_step`].
pub fn sgd_step(
    stream: &mut Stream,
    parameter: &mut GpuTensor,
    gradient: &GpuTensor,
    momentum: Option<&mut GpuTensor>,
    options: Sgd,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    options.check(momentum.is_some())?;
    let (own, ahead) = if options.nesterov {
        (1.0, options.momentum)
    } else {
        (0.0, 1.0)
    };
    let params = Params {
        count: parameter.len() as u32,
        scale: options.gradient_scale as f32,
        decay: options.weight_decay as f32,
        rate: options.learning_rate as f32,
        first: if options.first {
            0.0
        } else {
            options.momentum as f32
        },
        second: ahead as f32,
        third: own,
        ..Params::default()
    };
    let reads = [gradient.binding()];
    let Some(buffer) = momentum.filter(|_| options.momentum > 0.0) else {
        let writes = [parameter.binding()];
        return record(stream, "plain_sgd_step", params, &reads, &writes);
    };
    check_same("momentum buffer", buffer, parameter)?;
    let writes = [parameter.binding(), buffer.binding()];
    record(stream, "sgd_step", params, &reads, &writes)
}

/// One step of LARS with the formulas of the CPU's step; `momentum` is zero before the first step.
///
/// # Errors
/// As [`adamw_step`], and OUT_OF_MEMORY.
pub fn lars_step(
    stream: &mut Stream,
    parameter: &mut GpuTensor,
    gradient: &GpuTensor,
    momentum: &mut GpuTensor,
    options: Lars,
) -> Result<()> {
    check_same("gradient", gradient, parameter)?;
    check_same("momentum buffer", momentum, parameter)?;
    options.check()?;
    let norm = sum_of_squares(stream, parameter)?;
    let gradient_norm = sum_of_squares(stream, gradient)?;
    let params = Params {
        count: parameter.len() as u32,
        scale: options.gradient_scale as f32,
        decay: options.weight_decay as f32,
        rate: options.learning_rate as f32,
        first: options.momentum as f32,
        second: options.trust_coefficient as f32,
        epsilon: options.epsilon as f32,
        ..Params::default()
    };
    let reads = [gradient, &norm, &gradient_norm].map(GpuTensor::binding);
    let writes = [parameter.binding(), momentum.binding()];
    record(stream, "lars_step", params, &reads, &writes)
}

fn check_same(what: &str, values: &GpuTensor, parameter: &GpuTensor) -> Result<()> {
    values.expect(&format!("The {what}"), &[parameter.len()])
}

fn record(
    stream: &mut Stream,
    name: &'static str,
    params: Params,
    reads: &[Binding],
    writes: &[Binding],
) -> Result<()> {
    let count = u64::from(params.count);
    stream.record(Op {
        kernel: Kernel {
            name,
            sources: &[include_str!("optimiser.wgsl")],
            entry_point: name,
        },
        constants: (&[], &[]),
        uniforms: params,
        reads,
        writes,
        workgroups: fold_rows((params.count as usize).div_ceil(LINE)),
        cost: cost(7 * count, 12 * count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};

    const ADAMW: AdamW = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.5,
        step: 1,
        gradient_scale: 2.0,
    };
    const SGD: Sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        nesterov: false,
        first: true,
        gradient_scale: 0.5,
    };
    const LARS: Lars = Lars {
        learning_rate: 0.5,
        momentum: 0.9,
        weight_decay: 0.1,
        trust_coefficient: 0.01,
        epsilon: 1e-3,
        gradient_scale: -3.0,
    };

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&v| v.into()).collect()
    }

    #[test]
    fn steps_of_adamw_follow_its_formulas() {
        on_shapes(1usize..300, |stream, count| {
            let (start, mut w) = random(stream, &[count], 1);
            let [(_, mut m), (_, mut v)] = [0, 1].map(|_| {
                let zeros = vec![0.0; count];
                let tensor = stream.upload(&zeros, &[count]).unwrap();
                (zeros, tensor)
            });
            let mut expected = wide(&start);
            let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
            for step in 1..4 {
                let (g, gradient) = random(stream, &[count], 10 + u64::from(step));
                let options = AdamW { step, ..ADAMW };
                adamw_step(stream, &mut w, &gradient, &mut m, &mut v, options).unwrap();
                for i in 0..count {
                    let g = 2.0 * f64::from(g[i]);
                    first[i] += 0.1 * (g - first[i]);
                    second[i] = 0.99 * second[i] + 0.01 * g * g;
                    let power = |beta: f64| 1.0 - beta.powf(f64::from(step));
                    let root = (second[i] / power(0.99)).sqrt() + 1e-8;
                    expected[i] = expected[i] * 0.95 - 0.1 / power(0.9) * first[i] / root;
                }
            }
            assert_close(&read(stream, &m), &first, 1e-6);
            assert_close(&read(stream, &v), &second, 1e-6);
            assert_close(&read(stream, &w), &expected, 2e-5);
        });
    }

    #[test]
    fn steps_of_sgd_follow_its_formulas() {
        let options = (1usize..300, 0usize..3);
        on_shapes(options, |stream, (count, kind)| {
            let (momentum, nesterov) = [(0.0, false), (0.9, false), (0.9, true)][kind];
            let (start, mut w) = random(stream, &[count], 1);
            // An uninitialised buffer doesn't matter, as long as it is finite.
            let (_, mut buffer) = random(stream, &[count], 2);
            let (mut expected, mut momenta) = (wide(&start), vec![0.0; count]);
            for step in 0..3 {
                let (g, gradient) = random(stream, &[count], 10 + step);
                let options = Sgd {
                    momentum,
                    nesterov,
                    first: step == 0,
                    ..SGD
                };
                let state = (kind > 0).then_some(&mut buffer);
                sgd_step(stream, &mut w, &gradient, state, options).unwrap();
                for i in 0..count {
                    let g = 0.5 * f64::from(g[i]) + 0.01 * expected[i];
                    momenta[i] = momentum * momenta[i] + g;
                    let direction = if nesterov {
                        g + momentum * momenta[i]
                    } else {
                        momenta[i]
                    };
                    expected[i] -= 0.1 * direction;
                }
            }
            assert_close(&read(stream, &w), &expected, 1e-6);
        });
    }

    #[test]
    fn steps_of_lars_follow_the_norms() {
        on_shapes(1usize..300, |stream, count| {
            let (start, mut w) = random(stream, &[count], 1);
            let mut buffer = stream.upload(&vec![0.0; count], &[count]).unwrap();
            let (mut expected, mut momenta) = (wide(&start), vec![0.0; count]);
            for step in 0..3 {
                let (g, gradient) = random(stream, &[count], 10 + step);
                lars_step(stream, &mut w, &gradient, &mut buffer, LARS).unwrap();
                let norm_of = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
                let (norm, other) = (norm_of(&expected), 3.0 * norm_of(&wide(&g)));
                let trust = 0.01 * norm / (other + 0.1 * norm + 1e-3);
                for i in 0..count {
                    let g = trust * (-3.0 * f64::from(g[i]) + 0.1 * expected[i]);
                    momenta[i] = 0.9 * momenta[i] + g;
                    expected[i] -= 0.5 * momenta[i];
                }
            }
            assert_close(&read(stream, &w), &expected, 1e-5);
        });
    }

    #[test]
    fn where_a_norm_is_zero_lars_is_momentum() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |values: &[f32]| stream.upload(values, &[2]).unwrap();
        let (mut w, gradient, mut buffer) =
            (tensor(&[0.0; 2]), tensor(&[0.0, 2.0]), tensor(&[0.0; 2]));
        lars_step(&mut stream, &mut w, &gradient, &mut buffer, LARS).unwrap();
        assert_eq!(read(&mut stream, &w), [0.0, 3.0]);
    }

    #[test]
    fn what_is_out_of_range_is_an_error_and_changes_nothing() {
        let Some(mut stream) = stream() else { return };
        let mut tensor = |values: &[f32]| stream.upload(values, &[values.len()]).unwrap();
        let (mut w, g, long) = (tensor(&[1.0]), tensor(&[1.0]), tensor(&[1.0; 2]));
        let (mut m, mut v, mut wrong) = (tensor(&[0.0]), tensor(&[0.0]), tensor(&[0.0; 2]));
        let stream = &mut stream;
        let options = AdamW { step: 0, ..ADAMW };
        let result = adamw_step(stream, &mut w, &g, &mut m, &mut v, options);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = adamw_step(stream, &mut w, &long, &mut m, &mut v, ADAMW);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = adamw_step(stream, &mut w, &g, &mut wrong, &mut v, ADAMW);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = sgd_step(stream, &mut w, &g, None, SGD);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = sgd_step(stream, &mut w, &g, Some(&mut wrong), SGD);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        let result = lars_step(stream, &mut w, &g, &mut wrong, LARS);
        assert_eq!(code(result), "INVALID_ARGUMENT");
        assert_eq!(read(stream, &w), [1.0]);
    }
}
