//! Cosine similarities with prototypes: L2-normalised rows, multiplied by the gradients' GEMM.

use bytemuck::NoUninit;
use vit_msn_tensor::{Error, Result, check_temperature};

use super::linear::backward::{Left, product};
use super::{REDUCE, REDUCE_CONSTANTS, cost, fold_rows, lanes};
use crate::buffers::{Binding, GpuTensor};
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    length: f32,
    transposed: u32,
}

/// normalize(x) · normalize(prototypes)ᵀ / temperature; x `[rows, width]` and prototypes `[K, width]` give `[rows,
/// K]`.
///
/// # Errors
/// INVALID_ARGUMENT if shapes don't match or the temperature isn't positive, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn prototype_logits(
    stream: &mut Stream,
    x: &GpuTensor,
    prototypes: &GpuTensor,
    temperature: f64,
) -> Result<GpuTensor> {
    let [rows, width, count] = check(x, prototypes, temperature)?;
    let x = normalised(stream, x, 1.0 / temperature, false)?;
    let right = normalised(stream, prototypes, 1.0, true)?;
    product(stream, Left::Rows(&x), &right, [rows, count, width])
}

/// The gradients of [`prototype_logits`] with respect to x and prototypes.
///
/// # Errors
/// As [`prototype_logits`].
pub fn prototype_logits_backward(
    stream: &mut Stream,
    grad: &GpuTensor,
    x: &GpuTensor,
    prototypes: &GpuTensor,
    temperature: f64,
) -> Result<[GpuTensor; 2]> {
    let [rows, width, count] = check(x, prototypes, temperature)?;
    grad.expect("The gradient with respect to the logits", &[rows, count])?;
    // In both products, one factor includes the temperature.
    let scale = 1.0 / temperature;
    let right = normalised(stream, prototypes, scale, false)?;
    let by_x = product(stream, Left::Rows(grad), &right, [rows, width, count])?;
    let right = normalised(stream, x, scale, false)?;
    let by_prototypes = product(stream, Left::Columns(grad), &right, [count, width, rows])?;
    for (values, gradient) in [(x, &by_x), (prototypes, &by_prototypes)] {
        record(stream, "by_row", values, gradient.binding(), 1.0, false)?;
    }
    Ok([by_x, by_prototypes])
}

/// [rows, width, prototypes]
fn check(x: &GpuTensor, prototypes: &GpuTensor, temperature: f64) -> Result<[usize; 3]> {
    check_temperature(temperature)?;
    let [rows, width] = x.shape(
        "The features compared with the prototypes",
        ["rows", "width"],
    )?;
    let [count, other_width] = prototypes.shape("The prototypes", ["prototypes", "width"])?;
    if width == other_width && rows > 0 && count > 0 && width > 0 {
        return Ok([rows, width, count]);
    }
    Err(Error::InvalidArgument(format!(
        "Comparing with prototypes needs at least one row and one prototype, of the same width: got {rows} rows of {width} and {count} of {other_width}."
    )))
}

/// Scales rows to the length `length`; `transposed` stores them as columns.
fn normalised(
    stream: &mut Stream,
    x: &GpuTensor,
    length: f64,
    transposed: bool,
) -> Result<GpuTensor> {
    let y = stream.uninit(x.dims())?;
    record(stream, "normalise", x, y.binding(), length, transposed)?;
    Ok(y)
}

fn record(
    stream: &mut Stream,
    entry_point: &'static str,
    x: &GpuTensor,
    y: Binding,
    length: f64,
    transposed: bool,
) -> Result<()> {
    let (rows, width) = x.rows();
    let lanes = lanes(stream.context());
    stream.record(Op {
        kernel: Kernel {
            name: "prototypes",
            sources: &[REDUCE, include_str!("prototypes.wgsl")],
            entry_point,
        },
        constants: (REDUCE_CONSTANTS, &lanes),
        uniforms: Params {
            rows: rows as u32,
            width: width as u32,
            length: length as f32,
            transposed: u32::from(transposed),
        },
        reads: &[x.binding()],
        writes: &[y],
        workgroups: fold_rows(rows),
        cost: cost(4 * x.len() as u64, 6 * x.len() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, code, on_shapes, random, read, stream};
    use vit_msn_tensor::testing::{cosines, numeric_gradient, wide};

    #[test]
    fn logits_are_cosines_over_the_temperature() {
        let shapes = ([1usize..90, 1usize..90, 1usize..70], 0.05f64..2.0);
        on_shapes(shapes, |stream, ([rows, count, width], temperature)| {
            let (x, x_gpu) = random(stream, &[rows, width], 1);
            let (prototypes, prototypes_gpu) = random(stream, &[count, width], 2);
            let y = prototype_logits(stream, &x_gpu, &prototypes_gpu, temperature).unwrap();
            assert_eq!(y.dims(), [rows, count]);
            let expected = cosines(&wide(&x), &wide(&prototypes), width, temperature);
            assert_close(&read(stream, &y), &expected, 5e-6 / temperature);
        });
    }

    #[test]
    fn gradients_match_finite_differences() {
        on_shapes(
            [1usize..5, 1usize..7, 2usize..9],
            |stream, [rows, count, width]| {
                let (x, x_gpu) = random(stream, &[rows, width], 3);
                let (prototypes, prototypes_gpu) = random(stream, &[count, width], 4);
                let (grad, grad_gpu) = random(stream, &[rows, count], 5);
                let out =
                    prototype_logits_backward(stream, &grad_gpu, &x_gpu, &prototypes_gpu, 0.1)
                        .unwrap();
                let all = [wide(&x), wide(&prototypes)].concat();
                let expected = numeric_gradient(&all, 1e-6, |all| {
                    let (x, prototypes) = all.split_at(rows * width);
                    let logits = cosines(x, prototypes, width, 0.1);
                    logits
                        .iter()
                        .zip(&grad)
                        .map(|(y, &g)| y * f64::from(g))
                        .sum()
                });
                let actual = out.map(|by| read(stream, &by)).concat();
                assert_close(&actual, &expected, 5e-5);
            },
        );
    }

    #[test]
    fn rows_of_zeros_have_no_direction() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[0.0, 0.0, 3.0, 4.0], &[2, 2]).unwrap();
        let prototypes = stream.upload(&[0.0, 2.0], &[1, 2]).unwrap();
        let y = prototype_logits(&mut stream, &x, &prototypes, 0.5).unwrap();
        assert_close(&read(&mut stream, &y), &[0.0, 1.6], 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let Some(mut stream) = stream() else { return };
        let (_, x) = random(&mut stream, &[2, 3], 1);
        let (_, other) = random(&mut stream, &[3, 2], 1);
        for (prototypes, temperature) in [(&x, 0.0), (&x, f64::NAN), (&other, 0.1)] {
            let result = prototype_logits(&mut stream, &x, prototypes, temperature);
            assert_eq!(code(result), "INVALID_ARGUMENT");
        }
        let result = prototype_logits_backward(&mut stream, &x, &x, &x, 0.1);
        assert_eq!(code(result.map(|_| ())), "INVALID_ARGUMENT");
    }
}
