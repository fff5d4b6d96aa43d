//! The gradients of a linear layer: two products, each computed by the layer's own kernel on operands packed
//! for it.

use vit_msn_tensor::{Activation, Error, Result, check_len, numel, try_vec};

use crate::linear::linear;
use crate::linear::microkernel::NR;
use crate::linear::packed::PackedLinear;
use crate::linear::transpose::{pack_columns, transpose};
use crate::runtime::parallel::{DisjointSliceMut, for_each_task, threads_for};
use crate::runtime::simd::{F32x4, LANES};

/// Number of rows packed at a time, so that a block of them stays in L2.
const ROW_BLOCK: usize = 64;
/// Number of columns transposed at a time, so that whole cache lines are read.
const COLUMN_BLOCK: usize = 32;

/// out = grad · W: the gradient with respect to the layer's input, with grad `[rows, out_features]` and out
/// `[rows, in_features]`.
///
/// # Errors
/// INVALID_ARGUMENT when a length doesn't match or the weight is incomplete, UNSUPPORTED for int8,
/// OUT_OF_MEMORY.
pub fn linear_backward_input(grad: &[f32], w: &PackedLinear, out: &mut [f32]) -> Result<()> {
    check_floating(w)?;
    w.check_complete()?;
    let (inputs, outputs) = (w.in_features(), w.out_features());
    let rows = grad.len() / outputs;
    check_len(
        "The gradient of a linear layer's output",
        grad.len(),
        &[rows, outputs],
    )?;
    check_len(
        "The gradient with respect to the input",
        out.len(),
        &[rows, inputs],
    )?;
    linear(grad, &transposed(w)?, Activation::Identity, None, out)
}

/// weight = gradᵀ · x and bias = the column sums of grad: the gradients with respect to the layer's parameters,
/// with grad `[rows, out_features]`, x `[rows, in_features]`, weight `[out_features, in_features]` and bias
/// `[out_features]`.
///
/// # Errors
/// INVALID_ARGUMENT when a length doesn't match or there is no row, OUT_OF_MEMORY.
pub fn linear_backward_weights(
    grad: &[f32],
    x: &[f32],
    weight: &mut [f32],
    bias: &mut [f32],
) -> Result<()> {
    let outputs = bias.len();
    let rows = grad.len().checked_div(outputs).unwrap_or(0);
    let inputs = x.len().checked_div(rows).unwrap_or(0);
    if rows == 0 || inputs == 0 {
        return Err(Error::InvalidArgument(format!(
            "The gradient of a linear layer's weight needs at least one row, got {} values of its gradient and {} of its input.",
            grad.len(),
            x.len()
        )));
    }
    check_len(
        "The gradient of a linear layer's output",
        grad.len(),
        &[rows, outputs],
    )?;
    check_len("The input of a linear layer", x.len(), &[rows, inputs])?;
    check_len(
        "The gradient with respect to the weight",
        weight.len(),
        &[outputs, inputs],
    )?;
    let columns = transposed_with_sums(grad, rows, bias)?;
    let operand = packed_rows(x, rows, inputs)?;
    linear(&columns, &operand, Activation::Identity, None, weight)
}

fn check_floating(w: &PackedLinear) -> Result<()> {
    if w.quantised().is_none() {
        return Ok(());
    }
    Err(Error::Unsupported(
        "An int8 layer can't be trained: load the model with a floating dtype.".to_string(),
    ))
}

/// Packs Wᵀ as a right operand: transposes each of the NR × NR blocks that W's panels consist of.
fn transposed(w: &PackedLinear) -> Result<PackedLinear> {
    let (inputs, outputs) = (w.in_features(), w.out_features());
    let mut operand = PackedLinear::operand(inputs, outputs)?;
    let threads = threads_for(inputs.saturating_mul(outputs));
    let mut scratch = try_vec(threads * NR * NR)?;
    let (scratch, panels) = (
        DisjointSliceMut::new(&mut scratch),
        DisjointSliceMut::new(operand.panels_mut()),
    );
    for_each_task(threads, inputs.div_ceil(NR), &|task| {
        // SAFETY: each thread has its own scratch, each task its own panel.
        let (scratch, target) = unsafe {
            (
                scratch.get(task.thread * NR * NR, NR * NR),
                panels.get(task.index * outputs * NR, outputs * NR),
            )
        };
        let input0 = task.index * NR;
        let depth = NR.min(inputs - input0);
        for (panel, target) in target.chunks_mut(NR * NR).enumerate() {
            let block = w.panel_blocks(panel..panel + 1, input0..input0 + depth, scratch);
            transpose(block.values, NR, depth, target.len() / NR, target, NR);
        }
    });
    Ok(operand)
}

/// Packs rows `[rows, columns]` as a right operand of depth `rows`.
pub(crate) fn packed_rows(x: &[f32], rows: usize, columns: usize) -> Result<PackedLinear> {
    let mut operand = PackedLinear::operand(columns, rows)?;
    let panels = DisjointSliceMut::new(operand.panels_mut());
    for_each_task(threads_for(x.len()), rows.div_ceil(ROW_BLOCK), &|task| {
        let row0 = task.index * ROW_BLOCK;
        let block = &x[row0 * columns..];
        let count = ROW_BLOCK.min(rows - row0);
        for column0 in (0..columns).step_by(NR) {
            let width = NR.min(columns - column0);
            // SAFETY: each task has its own rows of every panel.
            let target = unsafe { panels.get((column0 / NR * rows + row0) * NR, count * NR) };
            pack_columns(&block[column0..], columns, width, target);
        }
    });
    Ok(operand)
}

/// The transpose of x `[rows, sums.len()]`; also computes the sums of its columns.
fn transposed_with_sums(x: &[f32], rows: usize, sums: &mut [f32]) -> Result<Vec<f32>> {
    let columns = sums.len();
    let mut out = try_vec(numel(&[rows, columns])?)?;
    let (targets, sums) = (DisjointSliceMut::new(&mut out), DisjointSliceMut::new(sums));
    for_each_task(
        threads_for(x.len()),
        columns.div_ceil(COLUMN_BLOCK),
        &|task| {
            let column0 = task.index * COLUMN_BLOCK;
            let count = COLUMN_BLOCK.min(columns - column0);
            // SAFETY: each task has its own columns.
            let (target, sums) = unsafe {
                (
                    targets.get(column0 * rows, count * rows),
                    sums.get(column0, count),
                )
            };
            transpose(&x[column0..], columns, rows, count, target, rows);
            for (sum, row) in sums.iter_mut().zip(target.chunks_exact(rows)) {
                *sum = sum_of(row) as f32;
            }
        },
    );
    Ok(out)
}

/// Sums blocks in float32 and adds the blocks' sums in float64.
fn sum_of(row: &[f32]) -> f64 {
    let sum_of_block = |block: &[f32]| {
        let (chunks, rest) = block.as_chunks::<LANES>();
        let sums = chunks.iter().fold(F32x4::splat(0.0), |sums, chunk| {
            // SAFETY: the chunk is four floats.
            sums.add(unsafe { F32x4::load(chunk.as_ptr()) })
        });
        f64::from(sums.sum() + rest.iter().sum::<f32>())
    };
    row.chunks(4 * ROW_BLOCK).map(sum_of_block).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, packed, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::Dtype;

    /// `Σₖ a(k, i) · b(k, j)` for each i and j, in float64.
    fn naive(
        (rows, columns, depth): (usize, usize, usize),
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f64> {
        (0..rows * columns)
            .map(|index| {
                let (i, j) = (index / columns, index % columns);
                (0..depth)
                    .map(|k| f64::from(a(k, i)) * f64::from(b(k, j)))
                    .sum()
            })
            .collect()
    }

    fn check(m: usize, k: usize, n: usize, dtype: Dtype) {
        let (w, weight, _) = packed(n, k, dtype, 5);
        let (grad, x) = (values(m * n, 6), values(m * k, 7));
        let mut by_input = vec![f32::NAN; m * k];
        linear_backward_input(&grad, &w, &mut by_input).unwrap();
        let expected = naive(
            (m, k, n),
            |o, row| grad[row * n + o],
            |o, i| weight[o * k + i],
        );
        assert_close(&by_input, &expected, 2e-7 * (n as f64 + 4.0));
        let (mut by_weight, mut by_bias) = (vec![f32::NAN; n * k], vec![f32::NAN; n]);
        linear_backward_weights(&grad, &x, &mut by_weight, &mut by_bias).unwrap();
        let expected = naive(
            (n, k, m),
            |row, o| grad[row * n + o],
            |row, i| x[row * k + i],
        );
        assert_close(&by_weight, &expected, 2e-7 * (m as f64 + 4.0));
        let expected = naive((1, n, m), |_, _| 1.0, |row, o| grad[row * n + o]);
        assert_close(&by_bias, &expected, 2e-7 * (m as f64 + 4.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn gradients_are_the_products(
            m in 1usize..70, k in 1usize..50, n in 1usize..50,
            dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)],
        ) {
            check(m, k, n, dtype);
        }
    }

    #[test]
    fn gradients_cross_every_block() {
        for (m, k, n) in [
            (1, 1, 1),
            (800, 17, 33),
            (323, 65, 401),
            (67, 800, 9),
            (3, 5, 797),
        ] {
            check(m, k, n, Dtype::F32);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (m, k, n) = (197, 384, 770);
        let (grad, x) = (values(m * n, 1), values(m * k, 2));
        let (w, ..) = packed(n, k, Dtype::F16, 3);
        same_with_workers(|| {
            let mut by_input = vec![f32::NAN; m * k];
            linear_backward_input(&grad, &w, &mut by_input).unwrap();
            let (mut by_weight, mut by_bias) = (vec![f32::NAN; n * k], vec![f32::NAN; n]);
            linear_backward_weights(&grad, &x, &mut by_weight, &mut by_bias).unwrap();
            [by_input, by_weight, by_bias].concat()
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (w, ..) = packed(3, 4, Dtype::F32, 0);
        for (grad, out) in [(7, 8), (6, 7), (6, 12)] {
            let error = linear_backward_input(&vec![0.0; grad], &w, &mut vec![0.0; out]);
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
        let quantised = PackedLinear::new(3, 4, Dtype::I8, false).unwrap();
        let error = linear_backward_input(&[0.0; 3], &quantised, &mut [0.0; 4]).unwrap_err();
        assert_eq!(error.code(), "UNSUPPORTED");
        let empty = PackedLinear::new(3, 4, Dtype::F32, false).unwrap();
        let error = linear_backward_input(&[0.0; 3], &empty, &mut [0.0; 4]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        for (grad, x, weight, bias) in [
            (7, 8, 12, 3),
            (6, 7, 12, 3),
            (6, 8, 11, 3),
            (0, 8, 12, 3),
            (6, 0, 0, 3),
            (6, 8, 12, 0),
        ] {
            let error = linear_backward_weights(
                &vec![0.0; grad],
                &vec![0.0; x],
                &mut vec![0.0; weight],
                &mut vec![0.0; bias],
            );
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
    }
}
