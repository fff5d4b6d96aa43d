//! The linear layer of int8 weights: quantises each row of its input by the row's largest magnitude, multiplies
//! integers, and scales the sums back to float32.

use std::ops::Range;

use vit_msn_tensor::{Activation, Result, try_vec};

use crate::activation::activate_rows;
use crate::dot_i8::{MR, NR, Tile, quantise_row, widen};
use crate::gemm::add_rows;
use crate::parallel::{Parts, Rows, for_each_task, threads_for};
use crate::quantise::QuantisedPanels;

/// The most bytes of quantised rows that a block holds: they stay in the L2 cache while the weights stream past.
const BLOCK_BYTES: usize = 320 << 10;
/// Columns that share a pass of the activation function: two panels, a cache line of the output.
const STRIPE: usize = 2 * NR;

/// What is added to and done with the product.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    /// Padded to whole stripes.
    pub bias: &'a [f32],
    pub act: Activation,
    pub residual: Option<&'a [f32]>,
}

/// [`crate::linear`] for int8 weights, all lengths checked: x `[rows, in_features]`, out `[rows, outputs]`.
pub(crate) fn linear_i8(
    x: &[f32],
    in_features: usize,
    w: &QuantisedPanels,
    epilogue: Epilogue,
    out: &mut [f32],
    outputs: usize,
) -> Result<()> {
    let rows = x.len() / in_features;
    let multiply_adds = x.len().saturating_mul(outputs);
    let mut multiplier = Multiplier::new(w, outputs, rows, threads_for(multiply_adds))?;
    for row0 in (0..rows).step_by(multiplier.capacity) {
        let taken = row0..rows.min(row0 + multiplier.capacity);
        multiplier.quantise(
            &x[taken.start * in_features..taken.end * in_features],
            in_features,
        );
        let range = taken.start * outputs..taken.end * outputs;
        let residual = epilogue.residual.map(|values| &values[range.clone()]);
        multiplier.multiply(
            Epilogue {
                residual,
                ..epilogue
            },
            &mut out[range],
        );
    }
    Ok(())
}

/// Multiplies a block of rows after the other with all of the weight.
struct Multiplier<'a> {
    w: &'a QuantisedPanels,
    outputs: usize,
    threads: usize,
    /// The most rows of a block.
    capacity: usize,
    /// The block's rows, quantised.
    values: Vec<i16>,
    scales: Vec<f32>,
    /// For each thread the weights of one panel, widened.
    panels: Vec<i16>,
}

impl<'a> Multiplier<'a> {
    fn new(w: &'a QuantisedPanels, outputs: usize, rows: usize, threads: usize) -> Result<Self> {
        let most = (BLOCK_BYTES / (w.depth() * size_of::<i16>())).max(MR);
        // Blocks of about the same size, in whole tiles.
        let blocks = rows.div_ceil(most).max(1);
        let capacity = rows.div_ceil(blocks).next_multiple_of(MR).max(MR);
        Ok(Self {
            w,
            outputs,
            threads,
            capacity,
            values: try_vec(capacity.min(rows) * w.depth())?,
            scales: try_vec(capacity)?,
            panels: try_vec(threads * NR * w.depth())?,
        })
    }

    fn quantise(&mut self, x: &[f32], in_features: usize) {
        let (depth, rows) = (self.w.depth(), x.len() / in_features);
        let (values, scales) = (Parts::new(&mut self.values), Parts::new(&mut self.scales));
        // As many rows as one thread multiplies at a time: less is not worth a task.
        for_each_task(self.threads, rows.div_ceil(MR), &|task| {
            for row in task.index * MR..rows.min((task.index + 1) * MR) {
                // SAFETY: each task has its own rows.
                let (values, scale) =
                    unsafe { (values.get(row * depth, depth), scales.get(row, 1)) };
                scale[0] = quantise_row(&x[row * in_features..][..in_features], values);
            }
        });
    }

    fn multiply(&mut self, epilogue: Epilogue, out: &mut [f32]) {
        let (outputs, size) = (self.outputs, NR * self.w.depth());
        let rows = out.len() / outputs;
        let (panels, out) = (Parts::new(&mut self.panels), Parts::new(out));
        let block = Block {
            w: self.w,
            values: &self.values,
            scales: &self.scales,
            rows,
        };
        for_each_task(self.threads, outputs.div_ceil(STRIPE), &|task| {
            let first = task.index * STRIPE;
            let columns = first..outputs.min(first + STRIPE);
            // SAFETY: each thread has its own panel, each task its own columns of the output.
            let (panel, mut stripe) = unsafe {
                (
                    panels.get(task.thread * size, size),
                    out.rows(first, outputs),
                )
            };
            for column in columns.clone().step_by(NR) {
                let columns = column..columns.end.min(column + NR);
                let target = stripe.shift(column - first);
                block.multiply_panel(panel, columns, epilogue.bias, target);
            }
            activate_rows(epilogue.act, stripe.each(rows, columns.len()));
            if let Some(residual) = epilogue.residual {
                let rows = stripe.each(rows, columns.len());
                add_rows(rows, &residual[first..], outputs);
            }
        });
    }
}

/// Quantised rows, to multiply with one panel after the other.
struct Block<'a> {
    w: &'a QuantisedPanels,
    values: &'a [i16],
    scales: &'a [f32],
    rows: usize,
}

impl Block<'_> {
    fn multiply_panel(
        &self,
        panel: &mut [i16],
        columns: Range<usize>,
        bias: &[f32],
        mut out: Rows<f32>,
    ) {
        widen(self.w.panel(columns.start / NR), panel);
        for row in (0..self.rows).step_by(MR) {
            self.tile(
                row..self.rows.min(row + MR),
                panel,
                &columns,
                bias,
                &mut out,
            );
        }
    }

    /// One tile. What has no place in the output, as a missing row, which is the first once more, goes into `spare`.
    #[inline(always)]
    fn tile(
        &self,
        rows: Range<usize>,
        panel: &[i16],
        columns: &Range<usize>,
        bias: &[f32],
        out: &mut Rows<f32>,
    ) {
        let depth = self.w.depth();
        let mut spare = [[0.0; NR]; MR];
        let mut targets = spare.each_mut().map(|values| values.as_mut_ptr());
        let direct = columns.len() == NR;
        if direct {
            for (target, row) in targets.iter_mut().zip(rows.clone()) {
                *target = out.row(row, NR).as_mut_ptr();
            }
        }
        let picked: [usize; MR] = std::array::from_fn(|r| {
            if r < rows.len() {
                rows.start + r
            } else {
                rows.start
            }
        });
        let tile = Tile {
            a: picked.map(|row| self.values[row * depth..][..depth].as_ptr()),
            row_scales: picked.map(|row| self.scales[row]),
            panel: panel[..NR * depth].as_ptr(),
            scales: self.w.scales(columns.start, NR).as_ptr(),
            bias: bias[columns.start..][..NR].as_ptr(),
            targets,
            depth,
        };
        // SAFETY: rows and panel were sliced to `depth` values and NR times that, scales and bias to NR floats; a target
        // is NR floats of the output or of `spare`.
        unsafe { tile.multiply() };
        if !direct {
            for (values, row) in spare.iter().zip(rows) {
                out.row(row, columns.len())
                    .copy_from_slice(&values[..columns.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vit_msn_tensor::Dtype;

    use super::*;
    use crate::activation::activate;
    use crate::test_support::values;
    use crate::{PackedLinear, linear};

    fn packed(n: usize, k: usize) -> PackedLinear {
        let mut w = PackedLinear::new(n, k, Dtype::I8, true).unwrap();
        let encode = |values: &[f32]| Dtype::F32.encode(values).unwrap();
        w.set_rows(0, Dtype::F32, &encode(&values(n * k, 5)))
            .unwrap();
        w.set_bias(0, Dtype::F32, &encode(&values(n, 6))).unwrap();
        w
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / 4];
        Dtype::F32.decode(bytes, &mut values).unwrap();
        values
    }

    /// The definition, with the kernel's roundings.
    fn naive(x: &[f32], w: &PackedLinear) -> Vec<f32> {
        let (n, k) = (w.out_features(), w.in_features());
        let weight = w.get_rows(0, n).unwrap();
        let scales = floats(&w.get_scales(0, n).unwrap());
        let bias = floats(&w.get_bias().unwrap().unwrap());
        let mut out = Vec::new();
        for x in x.chunks_exact(k) {
            let mut row = vec![0; k.next_multiple_of(8)];
            let row_scale = quantise_row(x, &mut row);
            for (column, weights) in weight.chunks_exact(k).enumerate() {
                let products = row
                    .iter()
                    .zip(weights)
                    .map(|(&a, &b)| i32::from(a) * i32::from(b as i8));
                let sum = products.sum::<i32>() as f32;
                out.push(sum * (scales[column] * row_scale) + bias[column]);
            }
        }
        out
    }

    fn check(m: usize, k: usize, n: usize) {
        let (x, w) = (values(m * k, 3), packed(n, k));
        let mut out = vec![f32::NAN; m * n];
        linear(&x, &w, Activation::Identity, None, &mut out).unwrap();
        assert_eq!(out, naive(&x, &w), "{m}×{k}×{n}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn every_bit_is_the_definitions(m in 0usize..20, k in 1usize..70, n in 1usize..70) {
            check(m, k, n);
        }
    }

    #[test]
    fn every_bit_is_the_definitions_across_blocks() {
        for (m, k, n) in [(1, 1, 1), (90, 8000, 17), (333, 1000, 5), (2, 30_000, 3)] {
            check(m, k, n);
        }
    }

    #[test]
    fn activation_comes_before_the_residual() {
        let (m, k, n) = (7, 40, 21);
        let (x, residual, w) = (values(m * k, 1), values(m * n, 2), packed(n, k));
        for act in [Activation::Identity, Activation::Gelu, Activation::Relu] {
            let mut expected = naive(&x, &w);
            activate(act, &mut expected);
            for (value, residual) in expected.iter_mut().zip(&residual) {
                *value += residual;
            }
            let mut out = vec![0.0; m * n];
            linear(&x, &w, act, Some(&residual), &mut out).unwrap();
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn results_are_near_those_of_float32() {
        let (m, k, n) = (9, 384, 33);
        let x = values(m * k, 1);
        let (full, ..) = crate::test_support::packed(n, k, Dtype::F32, 5);
        let (mut exact, mut quantised) = (vec![0.0; m * n], vec![0.0; m * n]);
        linear(&x, &full, Activation::Identity, None, &mut exact).unwrap();
        linear(
            &x,
            &packed(n, k),
            Activation::Identity,
            None,
            &mut quantised,
        )
        .unwrap();
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let error = square(&mut exact.iter().zip(&quantised).map(|(a, b)| a - b));
        // Roundings of the weights to 1/127 of the row's largest: half a per cent of the signal.
        assert!(error.sqrt() <= 0.01 * square(&mut exact.iter().copied()).sqrt());
    }

    #[test]
    fn what_is_not_finite_reaches_only_its_own_row() {
        let w = packed(17, 4);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = values(12, 1);
            x[5] = bad;
            let mut out = vec![0.0; 3 * 17];
            linear(&x, &w, Activation::Gelu, None, &mut out).unwrap();
            for (index, value) in out.iter().enumerate() {
                assert_eq!(value.is_nan(), index / 17 == 1);
            }
        }
    }
}
