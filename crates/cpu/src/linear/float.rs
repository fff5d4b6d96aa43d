//! The linear layer of float32 and half-width weights, of any size.

use std::ops::Range;

use vit_msn_tensor::{Result, try_vec};

use crate::linear::epilogue::Epilogue;
use crate::linear::microkernel::{COPY_SIZE, Init, KC, MC, MR, NR, Tile};
use crate::linear::packed::PackedLinear;
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{DisjointSliceMut, for_each_task, tasks_for, threads_for};
use crate::runtime::simd::FUSED;

/// Maximum bytes of a stripe.
const STRIPE_BYTES: usize = if FUSED { 480 << 10 } else { 0 };
/// Rows that share a pass of the activation function: enough values to be worth its preparation, and in L1 still.
const EPILOGUE_ROWS: usize = if FUSED { MR } else { MC };

/// What a linear layer computes.
pub(crate) struct Product<'a> {
    pub x: &'a [f32],
    pub w: &'a PackedLinear,
    pub epilogue: Epilogue<'a>,
}

/// [`crate::linear()`], all lengths checked.
pub(crate) fn multiply(product: &Product, out: &mut [f32]) -> Result<()> {
    let (inputs, outputs) = (product.w.in_features(), product.w.out_features());
    let rows = product.x.len() / inputs;
    let threads = threads_for(product.x.len().saturating_mul(outputs));
    let schedule = Schedule::new(rows, inputs, outputs, threads);
    // Half-width panels are widened a stripe at a time.
    let scratch_size = if product.w.is_full() {
        0
    } else {
        schedule.stripe * schedule.depth * NR
    };
    let copy_size = if FUSED { COPY_SIZE } else { 0 };
    let mut copies = try_vec(threads * copy_size)?;
    let mut scratch = try_vec(threads * scratch_size)?;
    let (copies, scratch) = (
        DisjointSliceMut::new(&mut copies),
        DisjointSliceMut::new(&mut scratch),
    );
    let out = DisjointSliceMut::new(out);
    for_each_task(threads, schedule.tasks(), &|task| {
        // SAFETY: each thread has its own scratch.
        let (copy, scratch) = unsafe {
            (
                copies.get(task.thread * copy_size, copy_size),
                scratch.get(task.thread * scratch_size, scratch_size),
            )
        };
        for part in schedule.parts(task.index) {
            // SAFETY: each task has its own rows and columns of the output.
            unsafe { product.compute(part, copy, scratch, &out) };
        }
    });
    Ok(())
}

/// How a product is cut: tasks of some rows and a group of panels; in a task, blocks of inputs; in those, stripes of panels.
struct Schedule {
    rows: usize,
    inputs: usize,
    panels: usize,
    /// Inputs of a block.
    depth: usize,
    /// Panels of a group, and how many groups there are.
    group: usize,
    groups: usize,
    /// Panels of a stripe.
    stripe: usize,
}

impl Schedule {
    fn new(rows: usize, inputs: usize, outputs: usize, threads: usize) -> Self {
        // Blocks of about the same size, in whole turns of the tile's loop.
        let depth = block_size(inputs, KC, 4).min(inputs);
        let panels = outputs.div_ceil(NR);
        // Some tasks a thread, for balance, but each copies its rows again; alone, all panels in one, so that a block of x
        // stays in L2 longest.
        let row_blocks = rows.div_ceil(MC).max(1);
        let group = panels.div_ceil(tasks_for(threads, 4).div_ceil(row_blocks));
        // Stripes of about the same size, too.
        let most = (STRIPE_BYTES / size_of::<f32>() / (depth * NR)).max(1);
        Self {
            rows,
            inputs,
            panels,
            depth,
            group,
            groups: panels.div_ceil(group),
            stripe: block_size(group, most, 1),
        }
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(MC) * self.groups
    }

    /// The parts of a task, in the order in which its sums are added up.
    fn parts(&self, task: usize) -> impl Iterator<Item = Part> {
        let (row0, panel0) = (task / self.groups * MC, task % self.groups * self.group);
        let rows = row0..self.rows.min(row0 + MC);
        let panels = panel0..self.panels.min(panel0 + self.group);
        blocks(self.inputs, self.depth).flat_map(move |inputs| {
            let (rows, stripe, end) = (rows.clone(), self.stripe, panels.end);
            panels.clone().step_by(stripe).map(move |first| Part {
                rows: rows.clone(),
                panels: first..end.min(first + stripe),
                inputs: inputs.clone(),
            })
        })
    }
}

/// Rows of a product, the panels that they meet, and the inputs that are summed up.
struct Part {
    rows: Range<usize>,
    panels: Range<usize>,
    inputs: Range<usize>,
}

impl Product<'_> {
    /// Adds a part's sums to the output, and finishes them after the last input.
    ///
    /// # Safety
    /// Nobody else may use the part's rows and columns of the output.
    unsafe fn compute(
        &self,
        part: Part,
        copy: &mut [f32],
        scratch: &mut [f32],
        out: &DisjointSliceMut<f32>,
    ) {
        let (inputs, outputs) = (self.w.in_features(), self.w.out_features());
        let Part {
            rows,
            panels,
            inputs: range,
        } = part;
        let column0 = panels.start * NR;
        let columns = outputs.min(panels.end * NR) - column0;
        let start = if range.start == 0 {
            Init::From(self.w.panel_biases(panels.clone()))
        } else {
            Init::Accumulate
        };
        let weights = self.w.panel_blocks(panels, range.clone(), scratch);
        for first in rows.clone().step_by(EPILOGUE_ROWS) {
            let last = rows.end.min(first + EPILOGUE_ROWS);
            for row in (first..last).step_by(MR) {
                let mut x = Tile {
                    values: &self.x[row * inputs + range.start..],
                    stride: inputs,
                    rows: MR.min(last - row),
                };
                if FUSED {
                    x = x.copied(range.len(), copy);
                }
                // SAFETY: guaranteed by the caller, as this function's safety section demands.
                let mut target = unsafe { out.rows(row * outputs + column0, outputs) };
                weights.multiply(x, columns, start, &mut target);
            }
            if range.end == inputs {
                // SAFETY: guaranteed by the caller, as this function's safety section demands.
                unsafe { self.finish(first..last, column0, columns, out) };
            }
        }
    }

    /// Turns complete sums into the layer's output, in place.
    ///
    /// # Safety
    /// Nobody else may use these rows and columns of the output.
    pub unsafe fn finish(
        &self,
        rows: Range<usize>,
        column0: usize,
        columns: usize,
        out: &DisjointSliceMut<f32>,
    ) {
        let outputs = self.w.out_features();
        let first = rows.start * outputs + column0;
        // SAFETY: guaranteed by the caller, as this function's safety section demands.
        let mut target = unsafe { out.rows(first, outputs) };
        self.epilogue.apply(first, rows.len(), columns, &mut target);
    }
}
