//! int8 products on the processor's dot product of bytes.
//!
//! Rows are quantised into tiles first. Then all tiles are multiplied by one stripe of panels at a time, which
//! stays in the L2 cache; the bytes of a tile stay in L1 while the stripe's panels stream past.

use std::ops::Range;

use vit_msn_tensor::{Result, try_vec};

use crate::linear::epilogue::Epilogue;
use crate::linear::float::Product;
use crate::linear::int8::Part;
use crate::linear::int8::byte_dot::ByteDot;
use crate::linear::int8::bytes_microkernel::{
    A_GROUP, ColumnScales, MR, NR, RowScale, TileProduct,
};
use crate::linear::int8::panels::QuantisedPanels;
use crate::linear::int8::quantise::{Byte, GROUP, Precision, Steps};
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{
    DisjointSliceMut, Rows, Task, for_each_task_in_turn, tasks_for, threads_for,
};

/// Maximum number of rows that are quantised before they are multiplied.
pub(super) const MAX_ROWS: usize = 320;
/// Maximum size of a stripe in bytes.
const STRIPE_BYTES: usize = 400 << 10;

/// Computes some outputs where `dot` is exact.
pub(super) fn multiply(
    product: &Product,
    w: &QuantisedPanels,
    dot: ByteDot,
    part: &Part,
    out: &mut [f32],
) -> Result<()> {
    let Product { x, epilogue, .. } = *product;
    let (inputs, outputs) = (product.w.in_features(), product.w.out_features());
    let (rows, depth) = (x.len() / inputs, w.depth());
    let Part { columns, precision } = part;
    let threads = threads_for(rows.saturating_mul(depth).saturating_mul(columns.len()));
    let panels = columns.len().div_ceil(NR);
    let group = panels.div_ceil(tasks_for(threads, 4));
    let stripe = block_size(group, (STRIPE_BYTES / (depth * NR)).max(1), 1);
    // Blocks of about equal size, in whole tiles.
    let capacity = block_size(rows, MAX_ROWS, MR);
    let tile = precision.bytes().len() * MR * depth;
    let mut bytes = try_vec(capacity / MR * tile)?;
    let mut scales = try_vec(capacity / MR)?;
    let (bytes, scales) = (
        DisjointSliceMut::new(&mut bytes),
        DisjointSliceMut::new(&mut scales),
    );
    for taken in blocks(rows, capacity.max(1)) {
        let x = &x[taken.start * inputs..taken.end * inputs];
        let range = taken.start * outputs..taken.end * outputs;
        let residual = epilogue.residual.map(|values| &values[range.clone()]);
        let out = DisjointSliceMut::new(&mut out[range]);
        let tiles = taken.len().div_ceil(MR);
        let quantise = |task: Task| {
            // SAFETY: each task has its own tile.
            let (bytes, scales) = unsafe {
                (
                    bytes.get(task.index * tile, tile),
                    scales.get(task.index, 1),
                )
            };
            scales[0] = quantise_tile(
                &x[task.index * MR * inputs..],
                inputs,
                dot,
                *precision,
                bytes,
            );
        };
        let multiply = |task: Task| {
            let first = task.index * stripe;
            // SAFETY: the first tasks are done and have set all tiles; each task has its own columns.
            let (bytes, scales, out) = unsafe {
                (
                    bytes.read(0, tiles * tile),
                    scales.read(0, tiles),
                    out.rows(columns.start + first * NR, outputs),
                )
            };
            let block = Block {
                w,
                dot,
                part,
                bias: product.w.padded_bias(),
                rows: taken.len(),
                bytes,
                scales,
                epilogue: Epilogue {
                    residual,
                    ..epilogue
                },
            };
            block.multiply(first..panels.min(first + stripe), out);
        };
        for_each_task_in_turn(
            threads,
            (tiles, &quantise),
            (panels.div_ceil(stripe), &multiply),
        );
    }
    Ok(())
}

/// Quantises the rows at the start of `x` into a tile. Missing rows repeat the last one.
fn quantise_tile(
    x: &[f32],
    inputs: usize,
    dot: ByteDot,
    precision: Precision,
    tile: &mut [u8],
) -> [RowScale; MR] {
    let bytes = precision.bytes();
    let size = tile.len() / bytes.len();
    let last = x.len() / inputs - 1;
    std::array::from_fn(|r| {
        let x = &x[r.min(last) * inputs..][..inputs];
        let steps = Steps::of(x, size / MR, precision);
        for (&byte, target) in bytes.iter().zip(tile.chunks_exact_mut(size)) {
            let offset = match byte {
                Byte::High => dot.offset(),
                Byte::Low => 0,
            };
            steps.write_bytes::<A_GROUP>(x, byte, offset, &mut target[r * GROUP..]);
        }
        RowScale {
            scale: steps.scale,
            zero: steps.zero - (i32::from(dot.offset()) << precision.low_bits()),
        }
    })
}

/// Quantised rows to be multiplied by the whole weight.
struct Block<'a> {
    w: &'a QuantisedPanels,
    dot: ByteDot,
    part: &'a Part,
    bias: &'a [f32],
    rows: usize,
    bytes: &'a [u8],
    scales: &'a [[RowScale; MR]],
    epilogue: Epilogue<'a>,
}

impl Block<'_> {
    /// Computes the outputs of a stripe of the part's panels; `out` starts at its first column.
    fn multiply(&self, stripe: Range<usize>, mut out: Rows<f32>) {
        let (depth, outputs) = (self.w.depth(), self.epilogue.outputs);
        let Part { columns, precision } = self.part;
        let first = columns.start / NR;
        let panels = first + stripe.start..first + stripe.end;
        let column0 = panels.start * NR;
        let count = columns.end.min(panels.end * NR) - column0;
        let scales = ColumnScales {
            scales: self.w.scales_from(column0),
            biases: &self.bias[column0..],
            sums: self.w.sums_from(column0),
        };
        let tile = precision.bytes().len() * MR * depth;
        let tiles = self.bytes.chunks_exact(tile).zip(self.scales);
        for ((bytes, rows), row) in tiles.zip((0..).step_by(MR)) {
            let tile = TileProduct {
                dot: self.dot,
                a: bytes,
                precision: *precision,
                rows,
                panels: self.w.panels(panels.clone()),
                columns: scales,
            };
            let rows = MR.min(self.rows - row);
            let mut out = out.skip(row);
            tile.write(rows, count, &mut out);
            self.epilogue
                .apply(row * outputs + column0, rows, count, &mut out);
        }
    }
}
