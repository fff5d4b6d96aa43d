//! int8 products on SIMD128's dot product of int16.
//!
//! Large products are divided into two by two blocks as in [`crate::linear::strassen_terms`]: consecutive tiles
//! of rows, the halves of a block of inputs, consecutive panels. The operands of all terms are computed first:
//! those of the rows once, those of the weights one stripe at a time. The stripe stays in the L2 cache while
//! the rows stream past.

use std::ops::Range;

use vit_msn_tensor::{Result, try_vec};

use crate::linear::epilogue::Epilogue;
use crate::linear::float::Product;
use crate::linear::int8::panels::QuantisedPanels;
use crate::linear::int8::quantise::Steps;
use crate::linear::int8::words_microkernel::{MR, NR, TILE, TileProduct, UNROLL, interleave};
use crate::linear::int8::{Part, scaled, to_float};
use crate::linear::strassen_terms::{Operand, TERMS, Term, WHOLE};
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{
    DisjointSliceMut, Rows, Task, for_each_task_in_turn, tasks_for, threads_for,
};
use crate::runtime::simd::{F32x4, LANES};

/// Maximum number of rows whose operands are computed at a time.
const MAX_ROWS: usize = 320;
/// Maximum number of inputs of a term, so that a tile's rows and a panel fit in the L1 cache.
pub(super) const MAX_TERM_DEPTH: usize = 512;
/// Maximum size of a stripe in bytes.
const STRIPE_BYTES: usize = 400 << 10;
/// Minimum number of rows for which the sums of weights pay off.
pub(super) const MIN_ROWS: usize = 48;

/// Computes some outputs where the dot product of bytes isn't exact.
pub(super) fn multiply(
    product: &Product,
    w: &QuantisedPanels,
    part: &Part,
    out: &mut [f32],
) -> Result<()> {
    let Product { x, epilogue, .. } = *product;
    let (in_features, outputs) = (product.w.in_features(), product.w.out_features());
    let rows = x.len() / in_features;
    let plan = Plan::new(w, rows, part);
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
                    out.rows(part.columns.start + stripe.start * plan.columns(), outputs),
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
    part: &'a Part,
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
    fn new(w: &'a QuantisedPanels, rows: usize, part: &'a Part) -> Self {
        let (depth, outputs) = (w.depth(), part.columns.len());
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
            part,
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
        self.part.columns.len().div_ceil(self.columns())
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
                Some(x) => {
                    let steps = Steps::of(x, depth, self.part.precision);
                    steps.write_words(x, row);
                    *scale = steps.scale;
                }
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
                        let first = self.part.columns.start / NR;
                        let panel = first + unit * self.halves + index % self.halves;
                        let panel = self.w.panels(panel..panel + 1);
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
        let (plan, outputs) = (self.plan, self.epilogue.outputs);
        let range = &plan.part.columns;
        let column0 = range.start + units.start * plan.columns();
        let columns = range.end.min(range.start + units.end * plan.columns()) - column0;
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
        let (scales, _) = self.plan.w.scales_from(column0).as_chunks();
        let (bias, _) = self.bias[column0..].as_chunks();
        let row_scale = F32x4::splat(self.row_scales[row]);
        let mut at = row / MR % halves * halves * TILE + row % MR * NR;
        let mut values = |panel: usize| {
            let values = scaled_panel(&sums[at..], row_scale, &scales[panel], &bias[panel]);
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

/// The scaled sums of a panel's outputs, from the start of `sums`.
#[inline(always)]
fn scaled_panel(sums: &[i32], row_scale: F32x4, scales: &[f32; NR], bias: &[f32; NR]) -> [f32; NR] {
    let sums = &sums[..NR];
    let mut out = [0.0; NR];
    for v in (0..NR).step_by(LANES) {
        // SAFETY: each slice has NR values, a multiple of LANES.
        unsafe {
            let scale = F32x4::load(scales.as_ptr().add(v));
            let bias = F32x4::load(bias.as_ptr().add(v));
            let sums = to_float(sums.as_ptr().add(v));
            scaled(sums, row_scale, scale, bias).store(out.as_mut_ptr().add(v));
        }
    }
    out
}
