//! Cosine similarities with prototypes: rows of norm 1, multiplied by the kernel of the linear layers.

use vit_msn_tensor::{Activation, Error, Result, check_len, check_temperature, numel, try_vec};

use crate::elementwise::update_block;
use crate::linear::backward::{linear_backward_weights, packed_rows};
use crate::linear::linear;
use crate::linear::microkernel::NR;
use crate::linear::packed::PackedLinear;
use crate::linear::transpose::transpose;
use crate::runtime::parallel::{
    DisjointSliceMut, for_each_block_of_rows, for_each_task, threads_for,
};
use crate::runtime::simd::{F32x4, map_in_place};

/// Lower bound of the norm that a row is divided by, as in torch's `F.normalize`.
const SHORTEST: f64 = 1e-12;

/// out = normalize(x) · normalize(prototypes)ᵀ / temperature, with x `[rows, width]`, prototypes `[K, width]`,
/// out `[rows, K]`.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match, one is 0, or the temperature isn't positive; OUT_OF_MEMORY.
pub fn prototype_logits(
    x: &[f32],
    prototypes: &[f32],
    width: usize,
    temperature: f64,
    out: &mut [f32],
) -> Result<()> {
    let [rows, count] = check(x, prototypes, width, temperature)?;
    check_len("The logits", out.len(), &[rows, count])?;
    let x = normalised(x, width, 1.0 / temperature)?;
    let operand = packed_transpose(&normalised(prototypes, width, 1.0)?, width)?;
    linear(&x, &operand, Activation::Identity, None, out)
}

/// The gradients of [`prototype_logits`] with respect to x and prototypes. With x̂ = x / |x|, a gradient g with
/// respect to x̂ is (g − x̂ · (x̂ · g)) / |x| with respect to x.
///
/// # Errors
/// Same as [`prototype_logits`].
pub fn prototype_logits_backward(
    grad: &[f32],
    x: &[f32],
    prototypes: &[f32],
    width: usize,
    temperature: f64,
    [by_x, by_prototypes]: [&mut [f32]; 2],
) -> Result<()> {
    let [rows, count] = check(x, prototypes, width, temperature)?;
    check_len(
        "The gradient with respect to the logits",
        grad.len(),
        &[rows, count],
    )?;
    check_len(
        "The gradient with respect to the input",
        by_x.len(),
        &[x.len()],
    )?;
    check_len(
        "The gradient with respect to the prototypes",
        by_prototypes.len(),
        &[prototypes.len()],
    )?;
    // In each product, one factor includes the temperature.
    let scale = 1.0 / temperature;
    let operand = packed_rows(&normalised(prototypes, width, scale)?, count, width)?;
    linear(grad, &operand, Activation::Identity, None, by_x)?;
    let x_scaled = normalised(x, width, scale)?;
    linear_backward_weights(grad, &x_scaled, by_prototypes, &mut try_vec(count)?)?;
    through_normalisation(x, width, by_x);
    through_normalisation(prototypes, width, by_prototypes);
    Ok(())
}

/// The numbers of rows of x and of prototypes.
fn check(x: &[f32], prototypes: &[f32], width: usize, temperature: f64) -> Result<[usize; 2]> {
    check_temperature(temperature)?;
    let rows = [x, prototypes].map(|values| values.len().checked_div(width).unwrap_or(0));
    if rows.contains(&0) {
        return Err(Error::InvalidArgument(format!(
            "Comparing with prototypes needs at least one row and one prototype, of the same width: got {} and {} values for rows of {width}.",
            x.len(),
            prototypes.len()
        )));
    }
    check_len(
        "The features compared with the prototypes",
        x.len(),
        &[rows[0], width],
    )?;
    check_len("The prototypes", prototypes.len(), &[rows[1], width])?;
    Ok(rows)
}

fn length(row: &[f32]) -> f64 {
    let squares = row.iter().map(|&v| f64::from(v) * f64::from(v));
    squares.sum::<f64>().sqrt()
}

/// The rows scaled to norm `scale`.
fn normalised(x: &[f32], width: usize, scale: f64) -> Result<Vec<f32>> {
    let mut out = try_vec(x.len())?;
    for_each_block_of_rows(&mut out, width, x.len().saturating_mul(4), &|row, block| {
        block.copy_from_slice(&x[row * width..][..block.len()]);
        for row in block.chunks_exact_mut(width) {
            let factor = F32x4::splat((scale / length(row).max(SHORTEST)) as f32);
            map_in_place(row, |v| v.mul(factor));
        }
    });
    Ok(out)
}

/// Converts gradients with respect to normalised rows to those with respect to the rows x, in place.
fn through_normalisation(x: &[f32], width: usize, grad: &mut [f32]) {
    for_each_block_of_rows(grad, width, x.len().saturating_mul(8), &|row, block| {
        let rows = x[row * width..].chunks_exact(width);
        for (grad, x) in block.chunks_exact_mut(width).zip(rows) {
            let length = length(x);
            // A row divided by the constant bound has no projection to subtract.
            let along = if length > SHORTEST {
                let dot = |(&g, &x): (&f32, &f32)| f64::from(g) * f64::from(x);
                grad.iter().zip(x).map(dot).sum::<f64>() / (length * length)
            } else {
                0.0
            };
            let [along, factor] =
                [-along, 1.0 / length.max(SHORTEST)].map(|v| F32x4::splat(v as f32));
            update_block([grad], [x], |[grad], [x]| {
                [x.mul_add(along, grad).mul(factor)]
            });
        }
    });
}

/// Packs rows as the right operand of a product with their transpose.
fn packed_transpose(rows: &[f32], width: usize) -> Result<PackedLinear> {
    let count = rows.len() / width;
    let mut operand = PackedLinear::operand(count, width)?;
    let panels = DisjointSliceMut::new(operand.panels_mut());
    let panel_size = numel(&[width, NR])?;
    for_each_task(threads_for(rows.len()), count.div_ceil(NR), &|task| {
        let first = task.index * NR;
        // SAFETY: each task has its own panel.
        let panel = unsafe { panels.get(task.index * panel_size, panel_size) };
        let source = &rows[first * width..];
        transpose(source, width, NR.min(count - first), width, panel, NR);
    });
    Ok(operand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::testing::{cosines, numeric_gradient, wide};

    fn run(x: &[f32], prototypes: &[f32], width: usize, temperature: f64) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / width * (prototypes.len() / width)];
        prototype_logits(x, prototypes, width, temperature, &mut out).unwrap();
        out
    }

    fn back(grad: &[f32], x: &[f32], prototypes: &[f32], width: usize) -> [Vec<f32>; 2] {
        let [mut by_x, mut by_prototypes] = [x, prototypes].map(|v| vec![f32::NAN; v.len()]);
        let out = [&mut by_x[..], &mut by_prototypes];
        prototype_logits_backward(grad, x, prototypes, width, 0.1, out).unwrap();
        [by_x, by_prototypes]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn logits_are_cosines_over_the_temperature(
            rows in 1usize..20, count in 1usize..40, width in 1usize..40, temperature in 0.05f64..2.0,
        ) {
            let (x, prototypes) = (values(rows * width, 1), values(count * width, 2));
            let expected = cosines(&wide(&x), &wide(&prototypes), width, temperature);
            assert_close(&run(&x, &prototypes, width, temperature), &expected, 5e-6 / temperature);
        }

        #[test]
        fn gradients_match_finite_differences(rows in 1usize..5, count in 1usize..7, width in 2usize..8) {
            let (x, prototypes) = (values(rows * width, 3), values(count * width, 4));
            let grad = values(rows * count, 5);
            let [by_x, by_prototypes] = back(&grad, &x, &prototypes, width);
            let all = [wide(&x), wide(&prototypes)].concat();
            let expected = numeric_gradient(&all, 1e-6, |all| {
                let (x, prototypes) = all.split_at(rows * width);
                let logits = cosines(x, prototypes, width, 0.1);
                logits.iter().zip(&grad).map(|(y, &g)| y * f64::from(g)).sum()
            });
            assert_close(&[by_x, by_prototypes].concat(), &expected, 2e-5);
        }
    }

    #[test]
    fn rows_of_zeros_have_no_direction() {
        let (x, prototypes) = ([0.0, 0.0, 3.0, 4.0], [0.0, 2.0]);
        let logits = run(&x, &prototypes, 2, 0.5);
        assert_eq!(logits[0], 0.0);
        assert!((logits[1] - 1.6).abs() < 1e-6);
        let [by_x, _] = back(&[1.0, 0.0], &x, &prototypes, 2);
        // As in torch: x / 1e-12 has a nonzero derivative, too.
        assert_eq!(by_x[0], 0.0);
        assert!((by_x[1] / 1e13 - 1.0).abs() < 1e-5);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, count, width) = (211, 130, 96);
        let (x, prototypes) = (values(rows * width, 6), values(count * width, 7));
        let grad = values(rows * count, 8);
        same_with_workers(|| {
            let mut out = run(&x, &prototypes, width, 0.1);
            out.extend(back(&grad, &x, &prototypes, width).concat());
            out
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for (x, prototypes, width, temperature, out) in [
            (6, 4, 2, 0.0, 6),
            (6, 4, 2, f64::NAN, 6),
            (6, 4, 2, 0.1, 5),
            (7, 4, 2, 0.1, 6),
            (6, 5, 2, 0.1, 6),
            (0, 4, 2, 0.1, 0),
            (6, 0, 2, 0.1, 0),
            (6, 4, 0, 0.1, 6),
        ] {
            let (x, prototypes) = (vec![0.0; x], vec![0.0; prototypes]);
            let mut out = vec![0.0; out];
            let error = prototype_logits(&x, &prototypes, width, temperature, &mut out);
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
            let gradients = [&mut x.clone()[..], &mut prototypes.clone()];
            let error =
                prototype_logits_backward(&out, &x, &prototypes, width, temperature, gradients);
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
    }
}
