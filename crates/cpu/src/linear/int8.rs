//! The linear layer with int8 weights: quantises each row of its input by the row's largest magnitude,
//! multiplies integers, and scales the sums back to float32.
//!
//! Large products are divided into two by two blocks as in [`crate::linear::strassen_terms`]: consecutive tiles
//! of rows, the halves of a block of inputs, consecutive panels. The operands of all terms are computed first:
//! those of the rows once, those of the weights one stripe at a time. The stripe stays in the L2 cache while
//! the rows stream past.

use std::ops::Range;

use vit_msn_tensor::{Result, try_vec};

use crate::linear::epilogue::Epilogue;
use crate::linear::float::Product;
use crate::linear::int8_microkernel::{
    MR, NR, TILE, TileProduct, UNROLL, interleave, quantise_row, scaled,
};
use crate::linear::int8_panels::QuantisedPanels;
use crate::linear::strassen_terms::{Operand, TERMS, Term, WHOLE};
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{
    DisjointSliceMut, Rows, Task, for_each_task_in_turn, tasks_for, threads_for,
};

/// Maximum number of rows whose operands are computed at a time.
const MAX_ROWS: usize = 320;
/// Maximum number of inputs of a term, so that a tile's rows and a panel fit in the L1 cache.
const MAX_TERM_DEPTH: usize = 512;
/// Maximum size of a stripe in bytes.
const STRIPE_BYTES: usize = 400 << 10;
/// Minimum number of rows for which the sums of weights pay off.
const MIN_ROWS: usize = 48;

/// [`crate::linear()`] for int8 weights, after all lengths have been checked; `w` are the panels of the
/// product's weights.
pub(crate) fn multiply(product: &Product, w: &QuantisedPanels, out: &mut [f32]) -> Result<()> {
    let Product { x, epilogue, .. } = *product;
    let (in_features, outputs) = (product.w.in_features(), product.w.out_features());
    let rows = x.len() / in_features;
    let plan = Plan::new(w, rows, outputs);
    // Blocks of about equal size, in whole units.
    let capacity = block_size(rows, MAX_ROWS, plan.rows());
    let mut operands = try_vec(capacity / plan.rows() * plan.row_operands())?;
    let mut row_scales = try_vec(capacity)?;
    let mut scratch = try_vec(plan.threads * plan.scratch_size())?;
    let mut sums = try_vec(plan.threads * plan.sums_size())?;
    let (operands, row_scales) = (
        DisjointSliceMut::new(&mut operands),
        DisjointSliceMut::new(&mut row_scales),
    );
    let (scratch, sums) = (
        DisjointSliceMut::new(&mut scratch),
        DisjointSliceMut::new(&mut sums),
    );
    for taken in blocks(rows, capacity.max(1)) {
        let x = &x[taken.start * in_features..taken.end * in_features];
        let range = taken.start * outputs..taken.end * outputs;
        let residual = epilogue.residual.map(|values| &values[range.clone()]);
        let out = DisjointSliceMut::new(&mut out[range]);
        // SAFETY: each thread has its own scratch and sums.
        let scratch = |task: Task| unsafe {
            let (size, sums_size) = (plan.scratch_size(), plan.sums_size());
            (
                scratch.get(task.thread * size, size),
                sums.get(task.thread * sums_size, sums_size),
            )
        };
        let unit = plan.rows();
        let units = taken.len().div_ceil(unit);
        let quantise = |task: Task| {
            let x = x[task.index * unit * in_features..].chunks_exact(in_features);
            let size = plan.row_operands();
            // SAFETY: each task has its own unit.
            let (operands, row_scales) = unsafe {
                (
                    operands.get(task.index * size, size),
                    row_scales.get(task.index * unit, unit),
                )
            };
            plan.quantise(x, operands, row_scales, scratch(task).0);
        };
        let multiply = |task: Task| {
            let stripe = plan.stripe(task.index);
            let (weights, sums) = scratch(task);
            // SAFETY: the first tasks are done and have set all units; each task has its own columns.
            let (operands, row_scales, out) = unsafe {
                (
                    operands.read(0, units * plan.row_operands()),
                    row_scales.read(0, units * unit),
                    out.rows(stripe.start * plan.columns(), outputs),
                )
            };
            let block = Block {
                plan: &plan,
                rows: taken.len(),
                operands,
                row_scales,
                bias: product.w.padded_bias(),
                epilogue: Epilogue {
                    residual,
                    ..epilogue
                },
            };
            plan.make_weight_operands(stripe.clone(), weights);
            block.multiply(stripe, weights, sums, out);
        };
        for_each_task_in_turn(
            plan.threads,
            (units, &quantise),
            (plan.units().div_ceil(plan.stripe_units), &multiply),
        );
    }
    Ok(())
}

/// How a product is divided.
struct Plan<'a> {
    w: &'a QuantisedPanels,
    outputs: usize,
    threads: usize,
    /// Number of blocks of a matrix in each direction.
    halves: usize,
    terms: &'static [Term],
    /// Number of inputs of one row of blocks.
    block: usize,
    /// Units of columns per stripe.
    stripe_units: usize,
}

impl<'a> Plan<'a> {
    fn new(w: &'a QuantisedPanels, rows: usize, outputs: usize) -> Self {
        let depth = w.depth();
        let threads = threads_for(rows.saturating_mul(depth).saturating_mul(outputs));
        let panels = outputs.div_ceil(NR);
        let cut = rows >= MIN_ROWS && depth.is_multiple_of(2 * UNROLL) && panels.is_multiple_of(2);
        let (halves, terms): (_, &[Term]) = if cut { (2, &TERMS) } else { (1, &WHOLE) };
        let block = block_size(depth, halves * MAX_TERM_DEPTH, halves * UNROLL);
        let units = panels / halves;
        let bytes = terms.len() * depth / halves * NR * size_of::<i16>();
        let group = units.div_ceil(tasks_for(threads, 4));
        let stripe_units = block_size(group, (STRIPE_BYTES / bytes).max(1), 1);
        Self {
            w,
            outputs,
            threads,
            halves,
            terms,
            block,
            stripe_units,
        }
    }

    /// Rows and columns of a unit: one tile, or two by two.
    fn rows(&self) -> usize {
        self.halves * MR
    }

    fn columns(&self) -> usize {
        self.halves * NR
    }

    /// Number of values of all terms' operands for a unit of rows.
    fn row_operands(&self) -> usize {
        self.terms.len() * self.w.depth() / self.halves * MR
    }

    /// Number of values of one thread's scratch: a stripe's operands, or a unit's quantised rows and their
    /// blocks.
    fn scratch_size(&self) -> usize {
        let stripe = self.terms.len() * self.w.depth() / self.halves * NR * self.stripe_units;
        stripe.max(self.rows() * (self.w.depth() + self.block))
    }

    /// Number of sums of a unit of rows times a stripe.
    fn sums_size(&self) -> usize {
        self.stripe_units * self.halves * self.halves * TILE
    }

    /// The blocks of inputs.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        blocks(self.w.depth(), self.block)
    }

    /// Number of units of columns; the last may be partial.
    fn units(&self) -> usize {
        self.outputs.div_ceil(self.columns())
    }

    /// The units of a stripe.
    fn stripe(&self, index: usize) -> Range<usize> {
        let first = index * self.stripe_units;
        first..self.units().min(first + self.stripe_units)
    }

    /// Quantises the rows of a unit and computes their operands, ordered by block of inputs, then term.
    fn quantise<'x>(
        &self,
        mut x: impl Iterator<Item = &'x [f32]>,
        operands: &mut [i16],
        scales: &mut [f32],
        scratch: &mut [i16],
    ) {
        let depth = self.w.depth();
        let (quantised, blocks) = scratch.split_at_mut(self.rows() * depth);
        let rows = quantised.chunks_exact_mut(depth);
        for (row, scale) in rows.zip(scales) {
            match x.next() {
                Some(x) => *scale = quantise_row(x, row),
                None => row.fill(0),
            }
        }
        self.make_row_operands(quantised, blocks, operands);
    }

    fn make_row_operands(&self, quantised: &[i16], blocks: &mut [i16], mut operands: &mut [i16]) {
        let depth = self.w.depth();
        for range in self.blocks() {
            let inputs = range.len() / self.halves;
            let size = inputs * MR;
            for (index, block) in blocks
                .chunks_exact_mut(size)
                .take(self.halves * self.halves)
                .enumerate()
            {
                let (tile, half) = (index / self.halves, index % self.halves);
                let row = |r| &quantised[(tile * MR + r) * depth + range.start..][half * inputs..];
                interleave(std::array::from_fn(|r| &row(r)[..inputs]), block);
            }
            for term in self.terms {
                let (operand, rest) = operands.split_at_mut(size);
                combine(term.a, |index| &blocks[index * size..][..size], operand);
                operands = rest;
            }
        }
    }

    /// Computes the operands of a stripe of weights, ordered by block of inputs, then term, then unit of
    /// columns.
    fn make_weight_operands(&self, units: Range<usize>, mut operands: &mut [i16]) {
        for range in self.blocks() {
            let inputs = range.len() / self.halves;
            let size = inputs * NR;
            for term in self.terms {
                for unit in units.clone() {
                    let block = |index| {
                        let panel = self.w.panel(unit * self.halves + index % self.halves);
                        let first = range.start + index / self.halves * inputs;
                        &panel[first * NR..][..size]
                    };
                    let (operand, rest) = operands.split_at_mut(size);
                    combine(term.b, block, operand);
                    operands = rest;
                }
            }
        }
    }
}

/// Computes an operand from its blocks.
fn combine<'a, T: Copy + Into<i16> + 'a>(
    operand: Operand,
    block: impl Fn(usize) -> &'a [T],
    out: &mut [i16],
) {
    match operand {
        Operand::Block(index) => {
            for (out, &value) in out.iter_mut().zip(block(index)) {
                *out = value.into();
            }
        }
        Operand::Sum(first, second) => {
            for ((out, &a), &b) in out.iter_mut().zip(block(first)).zip(block(second)) {
                *out = a.into() + b.into();
            }
        }
        Operand::Difference(first, second) => {
            for ((out, &a), &b) in out.iter_mut().zip(block(first)).zip(block(second)) {
                *out = a.into() - b.into();
            }
        }
    }
}

/// Quantised rows to be multiplied by the whole weight.
struct Block<'a> {
    plan: &'a Plan<'a>,
    rows: usize,
    operands: &'a [i16],
    row_scales: &'a [f32],
    bias: &'a [f32],
    epilogue: Epilogue<'a>,
}

impl Block<'_> {
    /// Computes a stripe of columns; `out` starts at its first column.
    fn multiply(&self, units: Range<usize>, weights: &[i16], sums: &mut [i32], mut out: Rows<f32>) {
        let (plan, outputs) = (self.plan, self.plan.outputs);
        let column0 = units.start * plan.columns();
        let columns = outputs.min(units.end * plan.columns()) - column0;
        let operands = self.operands.chunks_exact(plan.row_operands());
        for (operands, row) in operands.zip((0..self.rows).step_by(plan.rows())) {
            sums.fill(0);
            self.add_terms(units.len(), operands, weights, sums);
            let rows = row..self.rows.min(row + plan.rows());
            for row in rows.clone() {
                self.scale(row, column0, sums, out.row(row, columns));
            }
            let first = row * outputs + column0;
            self.epilogue
                .apply(first, rows.len(), columns, &mut out.skip(row));
        }
    }

    /// Adds all terms of a unit of rows and a stripe; `sums` holds the tiles of each unit of columns in turn.
    fn add_terms(&self, units: usize, mut a: &[i16], mut weights: &[i16], sums: &mut [i32]) {
        let plan = self.plan;
        for range in plan.blocks() {
            let inputs = range.len() / plan.halves;
            for term in plan.terms {
                let (values, panels);
                (values, a) = a.split_at(inputs * MR);
                (panels, weights) = weights.split_at(units * inputs * NR);
                let mut shares = [(0, false); 2];
                for (share, from) in shares.iter_mut().zip(term.c) {
                    *share = (from.block * TILE, from.negative);
                }
                let step = plan.halves * plan.halves * TILE;
                TileProduct { a: values, panels }.add(sums, step, &shares[..term.c.len()]);
            }
        }
    }

    /// Sets a row of the output from its sums: `sum · row_scale · scale + bias`.
    fn scale(&self, row: usize, column0: usize, sums: &[i32], out: &mut [f32]) {
        let halves = self.plan.halves;
        let scales = self.plan.w.scales(column0, out.len().next_multiple_of(NR));
        let (scales, _) = scales.as_chunks();
        let (bias, _) = self.bias[column0..].as_chunks();
        let first = row / MR % halves * halves * TILE + row % MR * NR;
        let mut at = first;
        let mut values = |panel: usize| {
            let values = scaled(
                &sums[at..][..NR],
                self.row_scales[row],
                &scales[panel],
                &bias[panel],
            );
            // Advances to the next panel of this unit, or to the first of the next unit.
            at += match (panel + 1) & (halves - 1) {
                0 => (halves * halves - halves + 1) * TILE,
                _ => TILE,
            };
            values
        };
        let (panels, rest) = out.as_chunks_mut();
        let whole = panels.len();
        for (panel, out) in panels.iter_mut().enumerate() {
            *out = values(panel);
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&values(whole)[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vit_msn_tensor::{Activation, Dtype};

    use super::*;
    use crate::activation::activate_in_place;
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

    /// The definition, with the kernel's rounding.
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
        for (m, k, n) in [
            (1, 1, 1),
            (90, 8000, 17),
            (333, 1000, 5),
            (2, 30_000, 3),
            (MIN_ROWS - 1, 32, 32),
            (MIN_ROWS, 2 * MAX_TERM_DEPTH + 16, 32),
            (MIN_ROWS + 5, 64, 27),
            (MAX_ROWS + 9, 96, 80),
            (197, 384, 1152),
        ] {
            check(m, k, n);
        }
    }

    #[test]
    fn activation_comes_before_the_residual() {
        let (m, k, n) = (7, 40, 21);
        let (x, residual, w) = (values(m * k, 1), values(m * n, 2), packed(n, k));
        for act in [Activation::Identity, Activation::Gelu, Activation::Relu] {
            let mut expected = naive(&x, &w);
            activate_in_place(act, &mut expected);
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
        // The weights are rounded to 1/127 of the row's largest value: half a per cent of the signal.
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
