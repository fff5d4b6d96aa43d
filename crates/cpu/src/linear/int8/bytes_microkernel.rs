//! The micro-kernel of int8 products on the processor's dot product of bytes: multiplies a tile of quantised rows
//! by packed panels, with the sums in registers, and scales the sums to float32 as they leave them.
//!
//! The dot product adds four products of neighbouring inputs to each sum, so operands are packed in groups of
//! four inputs. Twelve sums, two vectors of weights and one value of A fit the 16 registers of x86-64.

use crate::linear::int8::byte_dot::ByteDot;
use crate::linear::int8::quantise::{GROUP, LOW_BITS, Precision};
use crate::linear::int8::scaled;
use crate::runtime::parallel::Rows;
use crate::runtime::simd::{F32x4, LANES};

/// Rows of a tile: rows of the activations.
pub(super) const MR: usize = 6;
/// Columns of a tile: outputs of the layer.
pub(super) const NR: usize = 8;
/// Bytes of one group of inputs of a tile's rows.
pub(super) const A_GROUP: usize = MR * GROUP;
/// Bytes of one group of inputs of a panel.
const B_GROUP: usize = NR * GROUP;

/// What scales the sums of a row of A.
#[derive(Clone, Copy, Default)]
pub(super) struct RowScale {
    pub scale: f32,
    /// Times an output's sum of weights, subtracted from its sum.
    pub zero: i32,
}

/// What scales the sums of some outputs, a multiple of NR.
#[derive(Clone, Copy)]
pub(super) struct ColumnScales<'a> {
    pub scales: &'a [f32],
    pub biases: &'a [f32],
    /// The sum of each output's weights.
    pub sums: &'a [i32],
}

/// A tile of quantised rows and the panels of weights that it is multiplied by.
pub(super) struct TileProduct<'a> {
    pub dot: ByteDot,
    /// For each byte of the values, the most significant first: for each group of inputs in turn, the groups of MR
    /// rows.
    pub a: &'a [u8],
    pub precision: Precision,
    pub rows: &'a [RowScale; MR],
    /// For each panel, for each group of inputs in turn, the groups of NR outputs.
    pub panels: &'a [i8],
    pub columns: ColumnScales<'a>,
}

impl TileProduct<'_> {
    /// Sets the first `columns` columns of `rows` rows, at least one of each, to the scaled sums.
    #[inline(always)]
    pub fn write(&self, rows: usize, columns: usize, out: &mut Rows<f32>) {
        let parts = self.precision.bytes().len();
        let depth = self.a.len() / (parts * MR);
        let (whole, rest) = (columns / NR, columns % NR);
        let padded = columns.next_multiple_of(NR);
        let ColumnScales {
            scales,
            biases,
            sums,
        } = self.columns;
        assert!((1..=MR).contains(&rows) && depth > 0 && depth.is_multiple_of(GROUP));
        assert!(self.panels.len() >= depth * padded && sums.len() >= padded);
        assert!(scales.len() >= padded && biases.len() >= padded);
        let job = |panel: usize, count: usize, targets: [*mut f32; MR]| Job {
            dot: self.dot,
            a: self.a.as_ptr(),
            rows: self.rows,
            panels: self.panels[panel * NR * depth..].as_ptr(),
            scales: scales[panel * NR..].as_ptr(),
            biases: biases[panel * NR..].as_ptr(),
            sums: sums[panel * NR..].as_ptr(),
            depth,
            parts,
            count,
            targets,
        };
        if whole > 0 {
            // Missing rows repeat the last one, so they write the same values to the same place.
            let targets = std::array::from_fn(|r| out.row(r.min(rows - 1), columns).as_mut_ptr());
            // SAFETY: the operands' lengths are asserted above, and the targets are at least `whole * NR` floats.
            unsafe { imp::multiply(&job(0, whole, targets)) };
        }
        if rest > 0 {
            let mut spare = [[0.0; NR]; MR];
            let targets = spare.each_mut().map(|row| row.as_mut_ptr());
            // SAFETY: as above; the targets are NR floats of `spare`.
            unsafe { imp::multiply(&job(whole, 1, targets)) };
            for (row, spare) in spare.iter().enumerate().take(rows) {
                out.row(row, columns)[whole * NR..].copy_from_slice(&spare[..rest]);
            }
        }
    }
}

/// The operands and targets of the kernel.
struct Job<'a> {
    /// Where there is an instruction, it is what this describes.
    #[cfg_attr(target_arch = "wasm32", allow(dead_code))]
    dot: ByteDot,
    /// `parts * depth * MR` bytes.
    a: *const u8,
    rows: &'a [RowScale; MR],
    /// `count` times `depth * NR` bytes.
    panels: *const i8,
    /// `count` times NR values each.
    scales: *const f32,
    biases: *const f32,
    sums: *const i32,
    /// A positive multiple of GROUP.
    depth: usize,
    /// Number of bytes of a value.
    parts: usize,
    count: usize,
    /// `count * NR` floats each.
    targets: [*mut f32; MR],
}

#[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
mod imp {
    use core::arch::wasm32::*;
    use std::hint::black_box;

    use super::*;

    const VECTORS: usize = NR / LANES;
    type Sums = [[v128; VECTORS]; MR];

    /// # Safety
    /// The job's pointers must be valid for the lengths documented on its fields.
    #[inline(never)]
    pub unsafe fn multiply(job: &Job) {
        let mask = black_box(usize::MAX);
        for index in 0..job.count {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            unsafe {
                let panel = job.panels.add(index * job.depth * NR);
                let mut sums: Sums = [[i32x4_splat(0); VECTORS]; MR];
                for part in 0..job.parts {
                    if part > 0 {
                        sums = sums.map(|row| row.map(|sum| i32x4_shl(sum, LOW_BITS)));
                    }
                    let a = job.a.add(part * job.depth * MR);
                    add_products(&mut sums, a, panel, job.depth / GROUP, mask);
                }
                write(job, index * NR, sums);
            }
        }
    }

    /// Adds the products of one part of the values with a panel. The mask is `usize::MAX`, but opaque to LLVM.
    ///
    /// As in the float32 micro-kernel, LLVM can't predict the group because of the mask, so it leaves constant
    /// offsets in the loads; and the exits between the steps keep it from computing one sum after another over all
    /// four groups, with more live vectors than there are registers.
    ///
    /// # Safety
    /// `a` must be readable for `groups * A_GROUP` bytes, `panel` for `groups * B_GROUP`; `groups` is at least 1.
    #[inline(always)]
    unsafe fn add_products(
        sums: &mut Sums,
        a: *const u8,
        panel: *const i8,
        groups: usize,
        mask: usize,
    ) {
        let mut group = 0;
        loop {
            // SAFETY: guaranteed by the caller: the steps end with the last group.
            unsafe {
                let (a, panel) = (a.add(group * A_GROUP), panel.add(group * B_GROUP));
                let left = groups - group;
                if step::<0>(sums, a, panel, left)
                    || step::<1>(sums, a, panel, left)
                    || step::<2>(sums, a, panel, left)
                    || step::<3>(sums, a, panel, left)
                {
                    break;
                }
            }
            group = (group + 4) & mask;
        }
    }

    /// Adds the products of group `I` of an iteration. Returns true if it was the last group.
    ///
    /// # Safety
    /// `a` must be readable for `I + 1` groups of MR rows, `panel` for `I + 1` groups of NR outputs.
    #[inline(always)]
    unsafe fn step<const I: usize>(
        sums: &mut Sums,
        a: *const u8,
        panel: *const i8,
        left: usize,
    ) -> bool {
        // SAFETY: guaranteed by the caller; no load needs alignment.
        unsafe {
            // In two steps: LLVM folds the sum of both offsets into the loads only where neither could wrap.
            let (a, panel) = (a.add(I * A_GROUP), panel.add(I * B_GROUP));
            let weights: [v128; VECTORS] =
                std::array::from_fn(|v| v128_load(panel.add(v * 16).cast()));
            for (r, row) in sums.iter_mut().enumerate() {
                let value = v128_load32_splat(a.add(r * GROUP).cast());
                for (sum, weight) in row.iter_mut().zip(weights) {
                    *sum = i32x4_relaxed_dot_i8x16_i7x16_add(weight, value, *sum);
                }
            }
        }
        left == I + 1
    }

    /// Writes the scaled sums of a panel whose first output is `column`.
    ///
    /// # Safety
    /// Same as [`multiply`].
    #[inline(always)]
    unsafe fn write(job: &Job, column: usize, sums: Sums) {
        for v in 0..VECTORS {
            let column = column + v * LANES;
            // SAFETY: guaranteed by the caller; no load or store needs alignment.
            unsafe {
                let scale = F32x4::load(job.scales.add(column));
                let bias = F32x4::load(job.biases.add(column));
                let weights = v128_load(job.sums.add(column).cast());
                for ((row, target), sums) in job.rows.iter().zip(job.targets).zip(sums) {
                    let sum = i32x4_sub(sums[v], i32x4_mul(weights, i32x4_splat(row.zero)));
                    scaled(
                        F32x4(f32x4_convert_i32x4(sum)),
                        F32x4::splat(row.scale),
                        scale,
                        bias,
                    )
                    .store(target.add(column));
                }
            }
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "relaxed-simd")))]
mod imp {
    use super::*;
    use crate::linear::int8::to_float;

    /// # Safety
    /// The job's pointers must be valid for the lengths documented on its fields.
    pub unsafe fn multiply(job: &Job) {
        for index in 0..job.count {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            unsafe {
                let a = std::slice::from_raw_parts(job.a, job.parts * job.depth * MR);
                let size = job.depth * NR;
                let panel = std::slice::from_raw_parts(job.panels.add(index * size), size);
                let mut sums = [[0; NR]; MR];
                for (part, a) in a.chunks_exact(job.depth * MR).enumerate() {
                    // Low bytes have no top bit, so both forms take them the same way.
                    let shift = if part > 0 { LOW_BITS } else { 0 };
                    sums = sums.map(|row| row.map(|sum: i32| sum.wrapping_shl(shift)));
                    add_products(&mut sums, job.dot, a, panel);
                }
                write(job, index * NR, sums);
            }
        }
    }

    fn add_products(sums: &mut [[i32; NR]; MR], dot: ByteDot, a: &[u8], panel: &[i8]) {
        let value = |byte: u8| match dot {
            ByteDot::Signed => i32::from(byte as i8),
            _ => i32::from(byte),
        };
        for (a, weights) in a.chunks(A_GROUP).zip(panel.chunks(B_GROUP)) {
            for (row, a) in sums.iter_mut().zip(a.chunks(GROUP)) {
                for (sum, weights) in row.iter_mut().zip(weights.chunks(GROUP)) {
                    for (&byte, &weight) in a.iter().zip(weights) {
                        *sum = sum.wrapping_add(value(byte) * i32::from(weight));
                    }
                }
            }
        }
    }

    /// Writes the scaled sums of a panel whose first output is `column`.
    ///
    /// # Safety
    /// Same as [`multiply`].
    unsafe fn write(job: &Job, column: usize, sums: [[i32; NR]; MR]) {
        for ((row, target), mut sums) in job.rows.iter().zip(job.targets).zip(sums) {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            unsafe {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let weights = *job.sums.add(column + v);
                    *sum = sum.wrapping_sub(weights.wrapping_mul(row.zero));
                }
                for v in (0..NR).step_by(LANES) {
                    let scale = F32x4::load(job.scales.add(column + v));
                    let bias = F32x4::load(job.biases.add(column + v));
                    let sums = to_float(sums[v..][..LANES].as_ptr());
                    scaled(sums, F32x4::splat(row.scale), scale, bias)
                        .store(target.add(column + v));
                }
            }
        }
    }
}
