//! The micro-kernel of float32 products: multiplies a tile of rows by packed panels, with the accumulators in
//! registers.
//!
//! A tile keeps MR × NR accumulators in registers: 6 × 8 where multiply-add is one instruction, 2 × 16 where
//! the product also needs a register. The latter fits only thanks to the exits in [`multiply_panels`].
//!
//! Blocking: a wide tile keeps one panel block (KC × NR floats, 24 kB) in L1 while the rows of a block of x (MC
//! × KC floats) stream past it from L2. A tall tile reads more of x than of the panel, so MR rows are copied
//! into a contiguous buffer and stay in L1 while a stripe of panel blocks streams past them. The stripe stays
//! in L2 until all rows have been multiplied by it.

use std::ptr;

use crate::runtime::parallel::Rows;
use crate::runtime::simd::{F32x4, FUSED, LANES};

/// Rows and columns of a tile; a panel has the same number of columns.
const TILE: (usize, usize) = if FUSED { (6, 8) } else { (2, 16) };
pub(crate) const MR: usize = TILE.0;
pub(crate) const NR: usize = TILE.1;
/// Maximum number of inputs of a block.
pub(crate) const KC: usize = if FUSED { 512 } else { 384 };
/// Maximum number of rows of x multiplied by one stripe before moving to the next.
pub(crate) const MC: usize = 320 / MR * MR;
/// Stride of the copied rows: a power of two plus a cache line, so that the rows don't all map to the same
/// cache set.
const COPY_STRIDE: usize = KC + 16;
pub(crate) const COPY_SIZE: usize = MR * COPY_STRIDE;

static ZEROS: [f32; NR] = [0.0; NR];

/// Initial value of a tile's accumulators.
#[derive(Clone, Copy)]
pub(crate) enum Init<'a> {
    /// Zero.
    Zero,
    /// The same values in every row, NR for each panel: a bias.
    From(&'a [f32]),
    /// The current values of the target.
    Accumulate,
}

/// Where in a matrix a tile's sums are added: first row and column, and sign.
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
    /// Distance between the starts of consecutive rows.
    pub stride: usize,
    pub rows: usize,
}

impl<'a> Tile<'a> {
    /// Pointers to the starts of MR rows. Missing rows repeat the last one.
    #[inline(always)]
    fn starts(&self, depth: usize) -> [*const f32; MR] {
        std::array::from_fn(|r| self.values[r.min(self.rows - 1) * self.stride..][..depth].as_ptr())
    }

    /// The first `depth` values of the same rows, copied closer together.
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

/// Neighbouring panels of B, each `depth × NR`, `stride` values apart.
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
        // Missing rows repeat the last one, so they write the same sums to the same place.
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
            // SAFETY: `starts` slices the rows to `depth` floats, the panels' length is asserted above,
            // `Inits::of` slices a bias, and the targets are `whole * NR` floats.
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

    /// Adds `Σₖ a[row, k] · b[k, column]` of a whole tile at each of `places`, where the panels are every other
    /// panel.
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
        // SAFETY: `starts` slices the rows to `depth` floats, the panels' length is asserted above, and the
        // targets are at least `2 * count - 1` panels wide.
        unsafe { multiply_scatter_panels(&job) };
    }

    /// [`Panels::multiply`] for any number of rows, `stride` values apart.
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

/// The operands and targets of [`multiply_panels`].
struct Job {
    /// Number of inputs, at least one.
    depth: usize,
    /// `depth` floats of each row.
    a: [*const f32; MR],
    /// `count` panels of `depth * NR` floats, `stride` floats apart.
    panels: *const f32,
    stride: usize,
    count: usize,
    starts: Inits,
    /// `count * NR` floats for each row.
    targets: [*mut f32; MR],
}

/// Where the initial accumulators are read: from `count * NR` floats shared by all rows, NR at a time (`step`
/// NR); from the same NR floats for every panel (`step` 0); or from the targets themselves.
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

/// Multiplies a tile of rows by each panel in turn, with MR × NR accumulators in registers.
///
/// # Safety
/// The job's pointers must be valid for the lengths documented on its fields.
#[inline(never)]
unsafe fn multiply_panels(job: &Job) {
    let mask = std::hint::black_box(usize::MAX);
    let (depth, a) = (job.depth, job.a);
    for index in 0..job.count {
        // SAFETY: the caller's guarantee covers every pointer below: the steps end with input `depth - 1`.
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

/// The operands and targets of [`multiply_scatter_panels`].
struct ScatterJob<'a> {
    /// Number of inputs, at least one.
    depth: usize,
    /// `depth` floats of each row.
    a: [*const f32; MR],
    /// `count` panels of `depth * NR` floats, `stride` floats apart.
    panels: *const f32,
    stride: usize,
    count: usize,
    /// For each place, rows of `count` groups of NR floats, `2 * NR` apart, and a sign.
    targets: &'a [([*mut f32; MR], f32)],
}

/// Multiplies a tile of rows by each panel in turn, and adds the products in several places.
///
/// # Safety
/// The job's pointers must be valid for the lengths documented on its fields.
#[inline(never)]
unsafe fn multiply_scatter_panels(job: &ScatterJob) {
    let mask = std::hint::black_box(usize::MAX);
    let (depth, a) = (job.depth, job.a);
    for index in 0..job.count {
        let mut sums: Sums = [[F32x4::splat(0.0); NR / LANES]; MR];
        // SAFETY: guaranteed by the caller; see `# Safety` above.
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
                    // SAFETY: guaranteed by the caller; see `# Safety` above.
                    unsafe {
                        let target = row.add(2 * index * NR + v * LANES);
                        sum.mul_add(sign, F32x4::load(target)).store(target);
                    }
                }
            }
        }
    }
}

/// Adds the products of a tile's rows with a panel, over `depth` inputs. The mask is `usize::MAX`, but opaque
/// to LLVM.
///
/// Because of the opaque mask, LLVM can't predict k and leaves the addresses as written; V8 then folds the
/// constant offsets into the loads. The exits between the steps keep LLVM from computing one sum after another
/// over all four inputs, which needs more live vectors than there are registers. Measured in V8 on a 59 GFLOP/s
/// core with 2 × 16: 33 GFLOP/s with neither, 40 with the exits, 43 with both.
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

/// Adds the products of input `I` of an iteration: values of A with a row of the panel. Returns true if it was
/// the last input.
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
    // SAFETY: guaranteed by the caller; see `# Safety` above.
    unsafe {
        let weights: [F32x4; NR / LANES] =
            std::array::from_fn(|v| F32x4::load(panel.add(I * NR + v * LANES)));
        for (r, (row, value)) in sums.iter_mut().zip(a).enumerate() {
            let value = F32x4::load_splat(value.add(I));
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum = value.mul_add(weight, *sum);
            }
            // Keeps V8 from loading all values of A before the first product. The condition is never true; each
            // is different, or they would be merged.
            if FUSED && r + 1 < MR && left == usize::MAX - (I * MR + r) {
                return true;
            }
        }
        left == I + 1
    }
}
