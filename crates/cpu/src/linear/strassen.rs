//! The linear layer for large float32 products, divided into two by two blocks as in
//! [`crate::linear::strassen_terms`].
//!
//! The two halves of each matrix are interleaved: consecutive tiles of rows, the first and second half of each
//! block of inputs, consecutive panels. The products are therefore the GEMM's own tiles, each added to its
//! targets while those are in the L1 cache, and the sums of weights are computed one stripe at a time.
//!
//! A row's rounding error grows with the magnitude of both rows of a sum. Rows of very different norm, and rows
//! with values that aren't finite, therefore use the classical product.

use std::mem::MaybeUninit;
use std::ops::Range;

use vit_msn_tensor::{Error, Result, try_vec};

use crate::linear::float::Product;
use crate::linear::microkernel::{COPY_SIZE, Init, KC, MC, MR, NR, Panels, Place, Tile};
use crate::linear::strassen_terms::{Operand, TERMS};
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{
    DisjointSliceMut, Task, for_each_task_in_turn, tasks_for, threads_for,
};
use crate::runtime::simd::{F32x4, LANES, WIDE, loads_before_stores};

/// Rows and columns of the result computed together: two tiles, two panels.
const ROWS: usize = 2 * MR;
const COLUMNS: usize = 2 * NR;
/// Maximum number of pairs of row tiles multiplied by one stripe before moving to the next.
const MAX_PAIRS: usize = MC / ROWS;
/// Maximum size in bytes of a stripe of the terms' weights, which stays in the L2 cache while rows stream past.
const STRIPE_BYTES: usize = 400 << 10;
/// Minimum number of inputs and outputs for which the additional sums pay off.
const MIN_SIZE: usize = 256;
/// Maximum ratio of the rows' squared norms; beyond it, rounding errors would leak from one row into another.
const MAX_RATIO: f32 = 1e6;

/// The operand made of rows, for each term.
const ROW_OPERANDS: [Operand; TERMS.len()] = {
    let mut operands = [Operand::Block(0); TERMS.len()];
    let mut index = 0;
    while index < TERMS.len() {
        operands[index] = TERMS[index].a;
        index += 1;
    }
    operands
};
const WEIGHT_SUMS: usize = 5;
/// The sums of weights, for the terms whose right operand isn't a single block.
const WEIGHT_OPERANDS: [Operand; WEIGHT_SUMS] = {
    let mut operands = [Operand::Block(0); WEIGHT_SUMS];
    let (mut index, mut count) = (0, 0);
    while index < TERMS.len() {
        if !TERMS[index].b.is_block() {
            operands[count] = TERMS[index].b;
            count += 1;
        }
        index += 1;
    }
    assert!(count == WEIGHT_SUMS);
    operands
};

/// Whether a product of these sizes is faster with Strassen's algorithm.
pub(crate) fn is_profitable(rows: usize, inputs: usize, outputs: usize) -> bool {
    rows >= 4 * ROWS
        && inputs >= MIN_SIZE
        && outputs >= MIN_SIZE
        && inputs.is_multiple_of(2 * LANES)
        && outputs.is_multiple_of(COLUMNS)
}

/// [`crate::linear()`] for sizes that [`is_profitable`] accepts, after all lengths have been checked.
pub(crate) fn multiply(product: &Product, out: &mut [f32]) -> Result<()> {
    let plan = Plan::new(product);
    let pairs = plan.rows / ROWS;
    // Blocks of about equal size; the last one also takes the rows that don't form a pair.
    let capacity = block_size(pairs, MAX_PAIRS, 1);
    let blocks = pairs.div_ceil(capacity);
    let mut operands = try_uninit(capacity * plan.pair_size())?;
    let mut balanced = try_vec(capacity)?;
    let mut scratch = try_vec(plan.threads * plan.scratch_size())?;
    let (operands, balanced) = (
        DisjointSliceMut::new(&mut operands),
        DisjointSliceMut::new(&mut balanced),
    );
    let (scratch, out) = (
        DisjointSliceMut::new(&mut scratch),
        DisjointSliceMut::new(out),
    );
    for block in 0..blocks {
        let row0 = block * capacity * ROWS;
        let rows = if block + 1 == blocks {
            row0..plan.rows
        } else {
            row0..row0 + capacity * ROWS
        };
        let (pairs, size) = (rows.len() / ROWS, plan.pair_size());
        let add = |task: Task| {
            let first = (row0 + task.index * ROWS) * plan.inputs;
            let x = &product.x[first..][..ROWS * plan.inputs];
            // SAFETY: each task has its own pair.
            let (operands, balanced) = unsafe {
                (
                    operands.get(task.index * size, size),
                    balanced.get(task.index, 1),
                )
            };
            balanced[0] = add_pair(x, &plan, operands);
        };
        let multiply = |task: Task| {
            let size = plan.scratch_size();
            let first = task.index * plan.group;
            let last = (first + plan.group).min(plan.outputs / COLUMNS);
            // SAFETY: the first tasks are done and have set the operands of every pair; each thread has its own
            // scratch, each task its own columns.
            unsafe {
                let part = Part {
                    plan: &plan,
                    product,
                    operands: operands.read(0, pairs * plan.pair_size()).assume_init_ref(),
                    balanced: balanced.read(0, pairs),
                    rows: rows.clone(),
                };
                part.compute(first..last, scratch.get(task.thread * size, size), &out);
            }
        };
        for_each_task_in_turn(plan.threads, (pairs, &add), (plan.groups, &multiply));
    }
    Ok(())
}

/// Allocates `count` uninitialised values.
fn try_uninit(count: usize) -> Result<Vec<MaybeUninit<f32>>> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| Error::out_of_memory(count, size_of::<f32>()))?;
    // SAFETY: the capacity is reserved, and a `MaybeUninit` needs no initialisation.
    unsafe { values.set_len(count) };
    Ok(values)
}

/// How a product is divided.
struct Plan {
    rows: usize,
    inputs: usize,
    outputs: usize,
    threads: usize,
    /// Inputs per block: twice a tile's depth.
    block: usize,
    /// Pairs of panels per task, and per stripe.
    group: usize,
    stripe: usize,
    groups: usize,
    /// Number of floats of a stripe's widened weights.
    widened: usize,
}

impl Plan {
    fn new(product: &Product) -> Self {
        let (inputs, outputs) = (product.w.in_features(), product.w.out_features());
        let rows = product.x.len() / inputs;
        let threads = threads_for(product.x.len().saturating_mul(outputs));
        // Blocks of about equal size, in whole vectors of both halves.
        let block = block_size(inputs, 2 * KC, 2 * LANES);
        let pairs = outputs / COLUMNS;
        let group = pairs.div_ceil(tasks_for(threads, 8));
        let most = STRIPE_BYTES / size_of::<f32>() / (TERMS.len() * block / 2 * NR);
        let stripe = block_size(group, most.max(1), 1);
        Self {
            rows,
            inputs,
            outputs,
            threads,
            block,
            group,
            stripe,
            groups: pairs.div_ceil(group),
            widened: if product.w.is_full() {
                0
            } else {
                stripe * 2 * NR * block
            },
        }
    }

    /// Floats of one thread's scratch: copied rows, widened weights, sums of weights.
    fn scratch_size(&self) -> usize {
        COPY_SIZE + self.widened + WEIGHT_SUMS * self.stripe * NR * self.block / 2
    }

    /// Floats of a pair of tiles' operands, for all terms.
    fn pair_size(&self) -> usize {
        TERMS.len() * MR * self.inputs / 2
    }

    /// The blocks of inputs.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        blocks(self.inputs, self.block)
    }
}

/// Sets the left operands of a pair of tiles, ordered by block of inputs, then term, then row. Returns false
/// when the rows' norms are too different or not finite.
fn add_pair(x: &[f32], plan: &Plan, out: &mut [MaybeUninit<f32>]) -> bool {
    assert!(x.len() == ROWS * plan.inputs && out.len() == plan.pair_size());
    let (top, bottom) = x.split_at(MR * plan.inputs);
    let rows = top.chunks(plan.inputs).zip(bottom.chunks(plan.inputs));
    let mut squares = [[0.0; 2]; MR];
    for ((row, (top, bottom)), squares) in rows.enumerate().zip(&mut squares) {
        for range in plan.blocks() {
            let depth = range.len() / 2;
            let first = TERMS.len() * MR * range.start / 2 + row * depth;
            let target = &mut out[first..];
            let sums = add_row(&top[range.clone()], &bottom[range], target, MR * depth);
            squares[0] += sums[0];
            squares[1] += sums[1];
        }
    }
    let squares = squares.as_flattened();
    let least = squares.iter().fold(f32::INFINITY, |a, &b| a.min(b));
    squares
        .iter()
        .all(|&square| square <= MAX_RATIO * least && square.is_finite())
}

/// Sets one row of each left operand, `step` values apart, from two rows of two halves each. Returns the rows'
/// squared norms.
#[inline(never)]
fn add_row(top: &[f32], bottom: &[f32], out: &mut [MaybeUninit<f32>], step: usize) -> [f32; 2] {
    let depth = top.len() / 2;
    assert!(depth.is_multiple_of(LANES) && bottom.len() == top.len());
    let out = &mut out[..(TERMS.len() - 1) * step + depth];
    let mut squares = [F32x4::splat(0.0); 2];
    let mut k = 0;
    if WIDE {
        while k + 2 * LANES <= depth {
            // SAFETY: both rows have `2 * depth` values, and the target has `depth` values from the start of each operand.
            unsafe {
                let blocks = [0, LANES].map(|v| row_blocks(top, bottom, depth, k + v));
                for blocks in &blocks {
                    add_squares(&mut squares, blocks);
                }
                loads_before_stores();
                for (index, operand) in ROW_OPERANDS.into_iter().enumerate() {
                    let target = out.as_mut_ptr().cast::<f32>().add(index * step + k);
                    combine(operand, &blocks[0]).store(target);
                    combine(operand, &blocks[1]).store(target.add(LANES));
                }
            }
            k += 2 * LANES;
        }
    }
    while k < depth {
        // SAFETY: `depth` is a multiple of LANES, and the rest as above.
        unsafe {
            let blocks = row_blocks(top, bottom, depth, k);
            add_squares(&mut squares, &blocks);
            for (index, operand) in ROW_OPERANDS.into_iter().enumerate() {
                combine(operand, &blocks)
                    .store(out.as_mut_ptr().cast::<f32>().add(index * step + k));
            }
        }
        k += LANES;
    }
    squares.map(F32x4::sum)
}

/// Vectors of the four blocks of two rows, at input `k` of each half.
///
/// # Safety
/// Both rows must have `2 * depth` values, and `k + LANES` be at most `depth`.
#[inline(always)]
unsafe fn row_blocks(top: &[f32], bottom: &[f32], depth: usize, k: usize) -> [F32x4; 4] {
    // SAFETY: guaranteed by the caller.
    let half =
        |row: &[f32], half: usize| unsafe { F32x4::load(row.as_ptr().add(half * depth + k)) };
    [half(top, 0), half(top, 1), half(bottom, 0), half(bottom, 1)]
}

/// Adds the squares of vectors of the four blocks to those of both rows.
#[inline(always)]
fn add_squares(squares: &mut [F32x4; 2], [a11, a12, a21, a22]: &[F32x4; 4]) {
    squares[0] = a12.mul_add(*a12, a11.mul_add(*a11, squares[0]));
    squares[1] = a22.mul_add(*a22, a21.mul_add(*a21, squares[1]));
}

/// Computes an operand from vectors of the four blocks.
#[inline(always)]
fn combine(operand: Operand, blocks: &[F32x4; 4]) -> F32x4 {
    match operand {
        Operand::Block(index) => blocks[index],
        Operand::Sum(a, b) => blocks[a].add(blocks[b]),
        Operand::Difference(a, b) => blocks[a].sub(blocks[b]),
    }
}

/// Sets the sums of a stripe's weights, ordered by term, then pair of panels.
fn add_weights(weights: &Panels, pairs: usize, out: &mut [f32]) {
    let depth = weights.depth / 2;
    let size = depth * NR;
    let out = &mut out[..WEIGHT_SUMS * pairs * size];
    for pair in 0..pairs {
        let left = &weights.values[2 * pair * weights.stride..][..2 * size];
        let right = &weights.values[(2 * pair + 1) * weights.stride..][..2 * size];
        let target = &mut out[pair * size..];
        assert!(target.len() >= (WEIGHT_SUMS - 1) * pairs * size + size);
        for k in (0..size).step_by(NR) {
            // SAFETY: `size` is a multiple of NR; both slices have `2 * size` values, and the target has `size` values
            // from the start of each sum.
            unsafe {
                let half = |panel: &[f32], half: usize, k: usize| {
                    F32x4::load(panel.as_ptr().add(half * size + k))
                };
                let blocks: [_; NR / LANES] = std::array::from_fn(|v| {
                    let k = k + v * LANES;
                    [
                        half(left, 0, k),
                        half(right, 0, k),
                        half(left, 1, k),
                        half(right, 1, k),
                    ]
                });
                loads_before_stores();
                for (index, operand) in WEIGHT_OPERANDS.into_iter().enumerate() {
                    for (v, blocks) in blocks.iter().enumerate() {
                        let at = index * pairs * size + k + v * LANES;
                        combine(operand, blocks).store(target.as_mut_ptr().add(at));
                    }
                }
            }
        }
    }
}

/// Some rows of a product, with the left operands that [`add_pair`] computed from them.
struct Part<'a> {
    plan: &'a Plan,
    product: &'a Product<'a>,
    rows: Range<usize>,
    operands: &'a [f32],
    balanced: &'a [bool],
}

/// The right operand that rows are multiplied by at a time: some inputs of some panels.
struct Stripe<'a> {
    inputs: Range<usize>,
    column0: usize,
    pairs: usize,
    weights: Panels<'a>,
    sums: &'a [f32],
    bias: &'a [f32],
}

impl Part<'_> {
    /// Computes the columns of some pairs of panels.
    ///
    /// # Safety
    /// No other thread may access these columns of the part's rows during the call.
    unsafe fn compute(
        &self,
        pairs: Range<usize>,
        scratch: &mut [f32],
        out: &DisjointSliceMut<f32>,
    ) {
        let (copy, scratch) = scratch.split_at_mut(COPY_SIZE);
        let (widened, sums) = scratch.split_at_mut(self.plan.widened);
        let w = self.product.w;
        for inputs in self.plan.blocks() {
            for first in pairs.clone().step_by(self.plan.stripe) {
                let last = pairs.end.min(first + self.plan.stripe);
                let panels = 2 * first..2 * last;
                let weights = w.panel_blocks(panels.clone(), inputs.clone(), widened);
                add_weights(&weights, last - first, sums);
                let stripe = Stripe {
                    inputs: inputs.clone(),
                    column0: first * COLUMNS,
                    pairs: last - first,
                    weights,
                    sums,
                    bias: w.panel_biases(panels),
                };
                // SAFETY: guaranteed by the caller; see `# Safety` above.
                unsafe { self.process_stripe(&stripe, copy, out) };
            }
        }
    }

    /// Adds the products of all rows with a stripe.
    ///
    /// # Safety
    /// No other thread may access the stripe's columns of the part's rows during the call.
    unsafe fn process_stripe(
        &self,
        stripe: &Stripe,
        copy: &mut [f32],
        out: &DisjointSliceMut<f32>,
    ) {
        let columns = stripe.pairs * COLUMNS;
        for (index, row) in self.rows.clone().step_by(ROWS).enumerate() {
            let rows = row..self.rows.end.min(row + ROWS);
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            unsafe {
                if rows.len() == ROWS && self.balanced[index] {
                    self.multiply_pair(stripe, index, row, out);
                } else {
                    self.multiply_classical(stripe, rows.clone(), copy, out);
                }
                if stripe.inputs.end == self.plan.inputs {
                    self.product.finish(rows, stripe.column0, columns, out);
                }
            }
        }
    }

    /// Adds the seven products of a pair.
    ///
    /// # Safety
    /// Same as [`Part::process_stripe`].
    unsafe fn multiply_pair(
        &self,
        stripe: &Stripe,
        pair: usize,
        row: usize,
        out: &DisjointSliceMut<f32>,
    ) {
        let depth = stripe.inputs.len() / 2;
        let outputs = self.plan.outputs;
        // SAFETY: guaranteed by the caller; see `# Safety` above.
        let mut target = unsafe { out.rows(row * outputs + stripe.column0, outputs) };
        if stripe.inputs.start == 0 {
            for row in target.each(ROWS, stripe.bias.len()) {
                row.copy_from_slice(stripe.bias);
            }
        }
        let first = pair * self.plan.pair_size() + TERMS.len() * MR * stripe.inputs.start / 2;
        let operands = self.operands[first..].chunks_exact(MR * depth);
        let mut sums = stripe.sums.chunks_exact(stripe.pairs * NR * depth);
        for (values, term) in operands.zip(&TERMS) {
            let a = Tile {
                values,
                stride: depth,
                rows: MR,
            };
            let weights = match term.b {
                Operand::Block(index) => stripe.block(index),
                _ => Panels {
                    values: sums.next().unwrap_or_default(),
                    stride: NR * depth,
                    depth,
                },
            };
            let mut places = [Place::default(); 2];
            for (place, share) in places.iter_mut().zip(term.c) {
                *place = Place {
                    row: share.block / 2 * MR,
                    column: share.block % 2 * NR,
                    sign: if share.negative { -1.0 } else { 1.0 },
                };
            }
            weights.multiply_scatter(a, stripe.pairs, &places[..term.c.len()], &mut target);
        }
    }

    /// Adds the classical product of any number of rows.
    ///
    /// # Safety
    /// Same as [`Part::process_stripe`].
    unsafe fn multiply_classical(
        &self,
        stripe: &Stripe,
        rows: Range<usize>,
        copy: &mut [f32],
        out: &DisjointSliceMut<f32>,
    ) {
        let (inputs, outputs) = (self.plan.inputs, self.plan.outputs);
        let depth = stripe.inputs.len() / 2;
        for row in rows.clone().step_by(MR) {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let mut target = unsafe { out.rows(row * outputs + stripe.column0, outputs) };
            for first in stripe.inputs.clone().step_by(depth) {
                let a = Tile {
                    values: &self.product.x[row * inputs + first..],
                    stride: inputs,
                    rows: MR.min(rows.end - row),
                };
                let panels = Panels {
                    values: &stripe.weights.values[(first - stripe.inputs.start) * NR..],
                    stride: stripe.weights.stride,
                    depth,
                };
                let start = match first {
                    0 => Init::From(stripe.bias),
                    _ => Init::Accumulate,
                };
                panels.multiply(
                    a.copied(depth, copy),
                    stripe.pairs * COLUMNS,
                    start,
                    &mut target,
                );
            }
        }
    }
}

impl Stripe<'_> {
    /// One of the four blocks of the weights, for each pair of panels.
    fn block(&self, index: usize) -> Panels<'_> {
        let depth = self.inputs.len() / 2;
        let first = index % 2 * self.weights.stride + index / 2 * depth * NR;
        Panels {
            values: &self.weights.values[first..],
            stride: 2 * self.weights.stride,
            depth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear;
    use crate::test_support::{assert_close, naive_product, packed, same_with_workers, values};
    use vit_msn_tensor::{Activation, Dtype};

    /// Sizes with and without rows left over from whole pairs.
    const SIZES: [(usize, usize, usize); 4] = [
        (4 * ROWS, MIN_SIZE, MIN_SIZE),
        (4 * ROWS + MR + 1, MIN_SIZE + 8, MIN_SIZE + COLUMNS),
        (197, 2 * KC + 8, MIN_SIZE),
        (ROWS * (MAX_PAIRS + 1) + 1, MIN_SIZE, MIN_SIZE + 3 * COLUMNS),
    ];

    #[test]
    fn large_products_are_right() {
        for (m, k, n) in SIZES {
            assert!(is_profitable(m, k, n));
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let x = values(m * k, 3);
                let residual = values(m * n, 4);
                let (w, weight, bias) = packed(n, k, dtype, 11);
                let expected: Vec<f64> = naive_product(&x, &weight, &bias, k)
                    .iter()
                    .zip(&residual)
                    .map(|(&sum, &residual)| sum.max(0.0) + f64::from(residual))
                    .collect();
                let out = same_with_workers(|| {
                    let mut out = vec![f32::NAN; m * n];
                    linear(&x, &w, Activation::Relu, Some(&residual), &mut out).unwrap();
                    out
                });
                assert_close(&out, &expected, 1e-7 * k as f64);
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_halved_are_refused() {
        for (m, k, n) in [(4 * ROWS - 1, 512, 512), (197, 252, 512), (197, 512, 520)] {
            assert!(!is_profitable(m, k, n));
        }
    }

    #[test]
    fn a_row_does_not_disturb_its_neighbours() {
        let (m, k, n) = SIZES[0];
        let (w, weight, bias) = packed(n, k, Dtype::F32, 11);
        for wild in [f32::NAN, f32::INFINITY, 1e30, 1e6] {
            let mut x = values(m * k, 3);
            for value in &mut x[k..2 * k] {
                *value *= wild;
            }
            let mut out = vec![0.0; m * n];
            linear(&x, &w, Activation::Identity, None, &mut out).unwrap();
            let expected = naive_product(&x, &weight, &bias, k);
            assert_close(&out[..n], &expected[..n], 1e-7 * k as f64);
            assert_close(&out[2 * n..], &expected[2 * n..], 1e-7 * k as f64);
        }
    }
}
