//! The micro-kernel of float32 products: a tile of rows times packed panels, its sums in registers.
//!
//! A tile keeps MR × NR sums in registers: 6 × 8 where multiply and add are one instruction, 2 × 16 where the
//! product needs a register too, and that many only with the exits in [`multiply_panels`].
//!
//! Blocking: a wide tile stays with one panel block (KC × NR floats, 24 kB, in L1) while the rows of a block of x
//! (MC × KC floats) stream past it from L2. A tall one reads more of x than of the panel, so MR rows are copied to
//! one place and stay in L1 while a stripe of panel blocks streams past them; the stripe stays in L2 until all rows
//! have met it.

use std::ptr;

use crate::runtime::parallel::Rows;
use crate::runtime::simd::{F32x4, FUSED, LANES};

/// Rows and columns of a tile; a panel has as many columns.
const TILE: (usize, usize) = if FUSED { (6, 8) } else { (2, 16) };
pub(crate) const MR: usize = TILE.0;
pub(crate) const NR: usize = TILE.1;
/// Maximum number of inputs of a block.
pub(crate) const KC: usize = if FUSED { 512 } else { 384 };
/// Maximum number of rows of x that are multiplied by a stripe before the next.
pub(crate) const MC: usize = 320 / MR * MR;
/// From one of the rows that are copied to the next: a cache line more than a power of two, so that they aren't all in
/// the same set of the cache.
const COPY_STRIDE: usize = KC + 16;
pub(crate) const COPY_SIZE: usize = MR * COPY_STRIDE;

static ZEROS: [f32; NR] = [0.0; NR];

/// What a tile's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Init<'a> {
    /// Zero.
    Zero,
    /// The same values in every row, NR for each panel: a bias.
    From(&'a [f32]),
    /// What the target holds.
    Accumulate,
}

/// A place of a matrix that a tile's sums are added to: its first row and column there, and their sign.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    pub row: usize,
    /// At most NR.
    pub column: usize,
    pub sign: f32,
}

/// Some rows of A, at least one and at most MR.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub values: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
    pub rows: usize,
}

impl<'a> Tile<'a> {
    /// The beginning of MR rows. Those that aren't there are the last once more.
    #[inline(always)]
    fn starts(&self, depth: usize) -> [*const f32; MR] {
        std::array::from_fn(|r| self.values[r.min(self.rows - 1) * self.stride..][..depth].as_ptr())
    }

    /// The same rows closer together: their first `depth` values.
    pub fn copied(self, depth: usize, target: &'a mut [f32]) -> Self {
        let rows = self.values.chunks(self.stride).take(self.rows);
        for (row, copy) in rows.zip(target.chunks_mut(COPY_STRIDE)) {
            copy[..depth].copy_from_slice(&row[..depth]);
        }
        Self {
            values: target,
            stride: COPY_STRIDE,
            ..self
        }
    }
}

/// Neighbouring panels of B, each `depth × NR`, `stride` from one to the next.
pub(crate) struct Panels<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    /// At least 1.
    pub depth: usize,
}

impl Panels<'_> {
    /// `c[row, column] = start + Σₖ a[row, k] · b[k, column]` for the first `columns` columns, at least one.
    #[inline(always)]
    pub fn multiply(&self, a: Tile, columns: usize, start: Init, c: &mut Rows<f32>) {
        let (whole, rest) = (columns / NR, columns % NR);
        let last = columns.div_ceil(NR) - 1;
        let rows = a.rows;
        assert!((1..=MR).contains(&rows) && self.depth > 0);
        assert!(self.values.len() >= last * self.stride + self.depth * NR);
        // Rows that aren't there are the last once more, with the same sums in the same place.
        let mut target = |first: usize, columns: usize| {
            std::array::from_fn(|r| c.row(r.min(rows - 1), first + columns)[first..].as_mut_ptr())
        };
        if whole > 0 {
            let job = Job {
                depth: self.depth,
                a: a.starts(self.depth),
                panels: self.values.as_ptr(),
                stride: self.stride,
                count: whole,
                starts: Inits::of(start, 0, whole * NR),
                targets: target(0, whole * NR),
            };
            // SAFETY: rows were sliced to `depth` floats, panels measured above, a bias in `Inits::of`, and targets are
            // `whole * NR` floats.
            unsafe { multiply_panels(&job) };
        }
        if rest > 0 {
            let mut spare = [[0.0; NR]; MR];
            if matches!(start, Init::Accumulate) {
                for (row, spare) in spare.iter_mut().enumerate() {
                    let source = c.row(row.min(rows - 1), columns);
                    spare[..rest].copy_from_slice(&source[columns - rest..]);
                }
            }
            let job = Job {
                depth: self.depth,
                a: a.starts(self.depth),
                panels: self.values[last * self.stride..].as_ptr(),
                stride: self.stride,
                count: 1,
                starts: Inits::of(start, last * NR, NR),
                targets: spare.each_mut().map(|row| row.as_mut_ptr()),
            };
            // SAFETY: as above; the targets are NR floats of `spare`.
            unsafe { multiply_panels(&job) };
            for (row, spare) in spare.iter().enumerate().take(rows) {
                c.row(row, columns)[columns - rest..].copy_from_slice(&spare[..rest]);
            }
        }
    }

    /// Adds `Σₖ a[row, k] · b[k, column]` of a whole tile to each of `places`. Its panels are every other one there.
    #[inline(never)]
    pub fn multiply_scatter(&self, a: Tile, count: usize, places: &[Place], c: &mut Rows<f32>) {
        assert!(a.rows == MR && count > 0 && self.depth > 0);
        assert!(self.values.len() >= (count - 1) * self.stride + self.depth * NR);
        let a = a.starts(self.depth);
        let mut targets = [([ptr::null_mut(); MR], 0.0); 2];
        for (place, (rows, sign)) in places.iter().zip(&mut targets) {
            *rows = std::array::from_fn(|r| {
                c.row(place.row + r, 2 * count * NR)[place.column..].as_mut_ptr()
            });
            assert!(place.column <= NR);
            *sign = place.sign;
        }
        let job = ScatterJob {
            depth: self.depth,
            a,
            panels: self.values.as_ptr(),
            stride: self.stride,
            count,
            targets: &targets[..places.len()],
        };
        // SAFETY: rows were sliced to `depth` floats, panels measured above, and targets are `2 * count - 1` panels wide at
        // least.
        unsafe { multiply_scatter_panels(&job) };
    }

    /// [`Panels::multiply`] for any number of rows, `stride` from one to the next.
    pub fn multiply_rows(
        &self,
        a: &[f32],
        stride: usize,
        rows: usize,
        columns: usize,
        start: Init,
        c: &mut Rows<f32>,
    ) {
        for row in (0..rows).step_by(MR) {
            let tile = Tile {
                values: &a[row * stride..],
                stride,
                rows: MR.min(rows - row),
            };
            self.multiply(tile, columns, start, &mut c.skip(row));
        }
    }
}

/// What [`multiply_panels`] reads and writes.
struct Job {
    /// Inputs, at least one.
    depth: usize,
    /// `depth` floats of each row.
    a: [*const f32; MR],
    /// `count` panels of `depth * NR` floats, `stride` floats from one to the next.
    panels: *const f32,
    stride: usize,
    count: usize,
    starts: Inits,
    /// `count * NR` floats for each row.
    targets: [*mut f32; MR],
}

/// Where the sums begin: at the same `count * NR` floats for all rows, NR after NR, or at NR floats again and again, or
/// at the targets themselves.
enum Inits {
    Shared { values: *const f32, step: usize },
    Targets,
}

impl Inits {
    fn of(start: Init, first: usize, count: usize) -> Self {
        match start {
            Init::Zero => Self::Shared {
                values: ZEROS.as_ptr(),
                step: 0,
            },
            Init::From(values) => Self::Shared {
                values: values[first..][..count].as_ptr(),
                step: NR,
            },
            Init::Accumulate => Self::Targets,
        }
    }
}

type Sums = [[F32x4; NR / LANES]; MR];

/// The products of a tile of rows with one panel after the other, MR × NR sums at a time held in registers.
///
/// # Safety
/// The job's pointers must be valid for what their fields say.
#[inline(never)]
unsafe fn multiply_panels(job: &Job) {
    let mask = std::hint::black_box(usize::MAX);
    let (depth, a) = (job.depth, job.a);
    for index in 0..job.count {
        // SAFETY: what the caller guarantees covers every pointer below: the steps end with input `depth - 1`.
        unsafe {
            let targets = job.targets.map(|target| target.add(index * NR));
            let mut sums: Sums = match job.starts {
                Inits::Shared { values, step } => {
                    let values = values.add(index * step);
                    [std::array::from_fn(|v| F32x4::load(values.add(v * LANES))); MR]
                }
                Inits::Targets => targets
                    .map(|target| std::array::from_fn(|v| F32x4::load(target.add(v * LANES)))),
            };
            let panel = job.panels.add(index * job.stride);
            add_products(&mut sums, a, panel, depth, mask);
            for (target, row) in targets.into_iter().zip(sums) {
                for (v, sum) in row.into_iter().enumerate() {
                    sum.store(target.add(v * LANES));
                }
            }
        }
    }
}

/// What [`multiply_scatter_panels`] reads and writes.
struct ScatterJob<'a> {
    /// Inputs, at least one.
    depth: usize,
    /// `depth` floats of each row.
    a: [*const f32; MR],
    /// `count` panels of `depth * NR` floats, `stride` floats from one to the next.
    panels: *const f32,
    stride: usize,
    count: usize,
    /// Rows of `count` times NR floats, `2 * NR` from one to the next, and a sign.
    targets: &'a [([*mut f32; MR], f32)],
}

/// The products of a tile of rows with one panel after the other, added to several places.
///
/// # Safety
/// The job's pointers must be valid for what their fields say.
#[inline(never)]
unsafe fn multiply_scatter_panels(job: &ScatterJob) {
    let mask = std::hint::black_box(usize::MAX);
    let (depth, a) = (job.depth, job.a);
    for index in 0..job.count {
        let mut sums: Sums = [[F32x4::splat(0.0); NR / LANES]; MR];
        // SAFETY: guaranteed by the caller, as this function's safety section demands.
        unsafe {
            add_products(
                &mut sums,
                a,
                job.panels.add(index * job.stride),
                depth,
                mask,
            )
        };
        for (rows, sign) in job.targets {
            let sign = F32x4::splat(*sign);
            for (row, sums) in rows.iter().zip(&sums) {
                for (v, sum) in sums.iter().enumerate() {
                    // SAFETY: guaranteed by the caller, as this function's safety section demands.
                    unsafe {
                        let target = row.add(2 * index * NR + v * LANES);
                        sum.mul_add(sign, F32x4::load(target)).store(target);
                    }
                }
            }
        }
    }
}

/// Adds the products of a tile's rows with a panel, over `depth` inputs. The mask is `usize::MAX`, but unknown to LLVM.
///
/// LLVM can't foresee k through an unknown mask, so it leaves the addresses as they are written: V8 then takes the
/// constant offsets into the loads. The exits between the steps keep LLVM from computing sum after sum over all four
/// inputs, which needs more vectors at once than there are registers. Measured in V8 on a 59 GFLOP/s core, 2 × 16: 33
/// with neither, 40 with the exits, 43 with both.
///
/// # Safety
/// Each of `a` must be readable for `depth` floats, `panel` for `depth * NR`; `depth` is at least 1.
#[inline(always)]
unsafe fn add_products(
    sums: &mut Sums,
    a: [*const f32; MR],
    panel: *const f32,
    depth: usize,
    mask: usize,
) {
    let mut k = 0;
    loop {
        // SAFETY: guaranteed by the caller: the steps end with input `depth - 1`.
        unsafe {
            let (rows, weights, left) = (a.map(|row| row.add(k)), panel.add(k * NR), depth - k);
            if step::<0>(sums, rows, weights, left)
                || step::<1>(sums, rows, weights, left)
                || step::<2>(sums, rows, weights, left)
                || step::<3>(sums, rows, weights, left)
            {
                break;
            }
        }
        k = (k + 4) & mask;
    }
}

/// Adds the products of input `I` of a turn: values of A with a row of the panel. True when it was the last.
///
/// # Safety
/// Each of `a` must be readable for `I + 1` floats, `panel` for `(I + 1) * NR`.
#[inline(always)]
unsafe fn step<const I: usize>(
    sums: &mut Sums,
    a: [*const f32; MR],
    panel: *const f32,
    left: usize,
) -> bool {
    // SAFETY: guaranteed by the caller, as this function's safety section demands.
    unsafe {
        let weights: [F32x4; NR / LANES] =
            std::array::from_fn(|v| F32x4::load(panel.add(I * NR + v * LANES)));
        for (r, (row, value)) in sums.iter_mut().zip(a).enumerate() {
            let value = F32x4::load_splat(value.add(I));
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum = value.mul_add(weight, *sum);
            }
            // Keeps V8 from loading all values of A before the first product. Never met, and each a condition of
            // its own, or they would be merged.
            if FUSED && r + 1 < MR && left == usize::MAX - (I * MR + r) {
                return true;
            }
        }
        left == I + 1
    }
}
