//! The linear layer with float32 or half-width weights, for any size.

use std::ops::Range;

use vit_msn_tensor::{Result, try_vec};

use crate::linear::epilogue::Epilogue;
use crate::linear::microkernel::{COPY_SIZE, Init, KC, MC, MR, NR, Tile};
use crate::linear::packed::PackedLinear;
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{DisjointSliceMut, for_each_task, tasks_for, threads_for};
use crate::runtime::simd::FUSED;

/// Maximum size of a stripe in bytes.
const STRIPE_BYTES: usize = if FUSED { 480 << 10 } else { 0 };
/// Rows activated in one pass: enough values to amortise the activation's setup, few enough to still be in L1.
const EPILOGUE_ROWS: usize = if FUSED { MR } else { MC };

/// The operands of a linear layer.
pub(crate) struct Product<'a> {
    pub x: &'a [f32],
    pub w: &'a PackedLinear,
    pub epilogue: Epilogue<'a>,
}

/// [`crate::linear()`] after all lengths have been checked.
pub(crate) fn multiply(product: &Product, out: &mut [f32]) -> Result<()> {
    let (inputs, outputs) = (product.w.in_features(), product.w.out_features());
    let rows = product.x.len() / inputs;
    let threads = threads_for(product.x.len().saturating_mul(outputs));
    let schedule = Schedule::new(rows, inputs, outputs, threads);
    // Half-width panels are widened one stripe at a time.
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

/// How a product is divided: into tasks, each some rows times a group of panels; a task into blocks of inputs;
/// a block into stripes of panels.
struct Schedule {
    rows: usize,
    inputs: usize,
    panels: usize,
    /// Number of inputs of a block.
    depth: usize,
    /// Panels per group, and the number of groups.
    group: usize,
    groups: usize,
    /// Panels per stripe.
    stripe: usize,
}

impl Schedule {
    fn new(rows: usize, inputs: usize, outputs: usize, threads: usize) -> Self {
        // Blocks of about equal size, in whole iterations of the tile's loop.
        let depth = block_size(inputs, KC, 4).min(inputs);
        let panels = outputs.div_ceil(NR);
        // A few tasks per thread balance the load, but each copies its rows again. A single thread takes all
        // panels in one task, so that a block of x stays in L2 longest.
        let row_blocks = rows.div_ceil(MC).max(1);
        let group = panels.div_ceil(tasks_for(threads, 4).div_ceil(row_blocks));
        // Stripes of about equal size.
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

    /// The parts of a task, in the order in which their sums are accumulated.
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

/// A range of rows, the panels they are multiplied by, and the inputs summed over.
struct Part {
    rows: Range<usize>,
    panels: Range<usize>,
    inputs: Range<usize>,
}

impl Product<'_> {
    /// Adds a part's sums to the output, and applies the epilogue after the last input.
    ///
    /// # Safety
    /// No other thread may access the part's rows and columns of the output during the call.
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
                // SAFETY: guaranteed by the caller; see `# Safety` above.
                let mut target = unsafe { out.rows(row * outputs + column0, outputs) };
                weights.multiply(x, columns, start, &mut target);
            }
            if range.end == inputs {
                // SAFETY: guaranteed by the caller; see `# Safety` above.
                unsafe { self.finish(first..last, column0, columns, out) };
            }
        }
    }

    /// Applies the epilogue to complete sums, in place.
    ///
    /// # Safety
    /// No other thread may access these rows and columns of the output during the call.
    pub unsafe fn finish(
        &self,
        rows: Range<usize>,
        column0: usize,
        columns: usize,
        out: &DisjointSliceMut<f32>,
    ) {
        let outputs = self.w.out_features();
        let first = rows.start * outputs + column0;
        // SAFETY: guaranteed by the caller; see `# Safety` above.
        let mut target = unsafe { out.rows(first, outputs) };
        self.epilogue.apply(first, rows.len(), columns, &mut target);
    }
}
