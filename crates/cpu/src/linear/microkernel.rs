//! The micro-kernel of float32 products: multiplies a tile of rows by packed panels, with the accumulators in
//! registers.
//!
//! A tile keeps MR × NR accumulators in registers: 6 × 8 where multiply-add is one instruction, 2 × 16 where
//! the product also needs a register. The latter fits only thanks to the exits in [`add_products`].
//!
//! The wide engine multiplies each tile of rows by two panels at once, 6 × 16. Its 24 accumulators fit only where
//! V8 joins the vectors of a panel's row into one of 256 bits ([`WIDE`]).
//!
//! Blocking: a wide tile keeps one panel block (KC × NR floats, 24 kB) in L1 while the rows of a block of x (MC
//! × KC floats) stream past it from L2. A tall tile reads more of x than of the panel, so MR rows are copied
//! into a contiguous buffer and stay in L1 while a stripe of panel blocks streams past them. The stripe stays
//! in L2 until all rows have been multiplied by it.

use std::ptr;

use crate::runtime::parallel::Rows;
use crate::runtime::simd::{F32x4, FUSED, LANES, WIDE, loads_before_stores};

/// Rows and columns of a tile; a panel has the same number of columns.
const TILE: (usize, usize) = if FUSED { (6, 8) } else { (2, 16) };
pub(crate) const MR: usize = TILE.0;
pub(crate) const NR: usize = TILE.1;
/// Panels that a tile of rows is multiplied by at once.
const GROUP: usize = if WIDE { 2 } else { 1 };
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

/// The accumulators of MR rows by P panels.
type Sums<const P: usize> = [[[F32x4; NR / LANES]; P]; MR];

/// Calls `multiply` for each group of panels, with the index of its first, and `multiply_last` for those left over.
#[inline(always)]
fn for_each_group(count: usize, multiply: impl Fn(usize), multiply_last: impl Fn(usize)) {
    let grouped = count / GROUP * GROUP;
    for index in (0..grouped).step_by(GROUP) {
        multiply(index);
    }
    for index in grouped..count {
        multiply_last(index);
    }
}

/// Multiplies a tile of rows by each panel in turn, with the accumulators in registers.
///
/// # Safety
/// The job's pointers must be valid for the lengths documented on its fields.
#[inline(never)]
unsafe fn multiply_panels(job: &Job) {
    let mask = std::hint::black_box(usize::MAX);
    // SAFETY: guaranteed by the caller; each group's panels are among the `count` panels.
    for_each_group(
        job.count,
        |index| unsafe { multiply_group::<GROUP>(job, index, mask) },
        |index| unsafe { multiply_group::<1>(job, index, mask) },
    );
}

/// Multiplies a tile of rows by P neighbouring panels.
///
/// # Safety
/// As for [`multiply_panels`], and `first + P` must be at most `count`.
#[inline(always)]
unsafe fn multiply_group<const P: usize>(job: &Job, first: usize, mask: usize) {
    // SAFETY: the caller's guarantee covers every pointer below: the steps end with input `depth - 1`.
    unsafe {
        let targets = job.targets.map(|target| target.add(first * NR));
        let mut sums: Sums<P> = match job.starts {
            Inits::Shared { values, step } => {
                let values = values.add(first * step);
                [std::array::from_fn(|p| load_row(values.add(p * step))); MR]
            }
            Inits::Targets => {
                targets.map(|target| std::array::from_fn(|p| load_row(target.add(p * NR))))
            }
        };
        let panels = std::array::from_fn(|p| job.panels.add((first + p) * job.stride));
        add_products(&mut sums, job.a, panels, job.depth, mask);
        for (target, row) in targets.iter().zip(&sums) {
            for (p, panel) in row.iter().enumerate() {
                store_row(panel, target.add(p * NR));
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
    // Opaque, so that a panel's targets have one base: LLVM would add a constant to a neighbour's address for each.
    let step = std::hint::black_box(2 * NR);
    // SAFETY: guaranteed by the caller; each group's panels are among the `count` panels.
    for_each_group(
        job.count,
        |index| unsafe { multiply_scatter_group::<GROUP>(job, index, step, mask) },
        |index| unsafe { multiply_scatter_group::<1>(job, index, step, mask) },
    );
}

/// Multiplies a tile of rows by P panels, and adds the products in several places; `step` is `2 * NR`.
///
/// # Safety
/// As for [`multiply_scatter_panels`], and `first + P` must be at most `count`.
#[inline(always)]
unsafe fn multiply_scatter_group<const P: usize>(
    job: &ScatterJob,
    first: usize,
    step: usize,
    mask: usize,
) {
    let mut sums: Sums<P> = [[[F32x4::splat(0.0); NR / LANES]; P]; MR];
    // SAFETY: guaranteed by the caller; see `# Safety` above.
    unsafe {
        let panels = std::array::from_fn(|p| job.panels.add((first + p) * job.stride));
        add_products(&mut sums, job.a, panels, job.depth, mask);
    }
    for (rows, sign) in job.targets {
        let sign = F32x4::splat(*sign);
        for (row, sums) in rows.iter().zip(&sums) {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let targets: [_; P] =
                std::array::from_fn(|p| unsafe { row.add(first * step + p * step) });
            let added: [[F32x4; NR / LANES]; P] = std::array::from_fn(|p| {
                // SAFETY: likewise.
                let values = unsafe { load_row(targets[p]) };
                std::array::from_fn(|v| sums[p][v].mul_add(sign, values[v]))
            });
            loads_before_stores();
            for (target, added) in targets.into_iter().zip(&added) {
                // SAFETY: likewise.
                unsafe { store_row(added, target) };
            }
        }
    }
}

/// NR floats.
///
/// # Safety
/// `source` must be readable for NR floats.
#[inline(always)]
unsafe fn load_row(source: *const f32) -> [F32x4; NR / LANES] {
    // SAFETY: guaranteed by the caller.
    std::array::from_fn(|v| unsafe { F32x4::load(source.add(v * LANES)) })
}

/// # Safety
/// `target` must be writable for NR floats.
#[inline(always)]
unsafe fn store_row(row: &[F32x4; NR / LANES], target: *mut f32) {
    for (v, values) in row.iter().enumerate() {
        // SAFETY: guaranteed by the caller.
        unsafe { values.store(target.add(v * LANES)) };
    }
}

/// Adds the products of a tile's rows with P panels, over `depth` inputs. The mask is `usize::MAX`, but opaque
/// to LLVM.
///
/// Because of the opaque mask, LLVM can't predict k and leaves the addresses as written; V8 then folds the
/// constant offsets into the loads. The exits between the steps keep LLVM from computing one sum after another
/// over all four inputs, which needs more live vectors than there are registers. Measured in V8 on a 59 GFLOP/s
/// core with 2 × 16: 33 GFLOP/s with neither, 40 with the exits, 43 with both.
///
/// V8 joins vectors only if their loads have the same base and constant offsets 16 bytes apart, and keeps one
/// register for itself: 6 × 16 needs the other fifteen, twelve accumulators, two vectors of weights and a splat,
/// so both products with a splat must follow it at once. `test/node/wide_module.test.ts` checks the
/// compiled loop.
///
/// # Safety
/// Each of `a` must be readable for `depth` floats, each of `panels` for `depth * NR`; `depth` is at least 1.
#[inline(always)]
unsafe fn add_products<const P: usize>(
    sums: &mut Sums<P>,
    a: [*const f32; MR],
    panels: [*const f32; P],
    depth: usize,
    mask: usize,
) {
    let mut k = 0;
    loop {
        // SAFETY: guaranteed by the caller: the steps end with input `depth - 1`.
        unsafe {
            let (rows, weights) = (
                a.map(|row| row.add(k)),
                panels.map(|panel| panel.add(k * NR)),
            );
            let left = depth - k;
            if step::<0, P>(sums, rows, weights, left)
                || step::<1, P>(sums, rows, weights, left)
                || step::<2, P>(sums, rows, weights, left)
                || step::<3, P>(sums, rows, weights, left)
            {
                break;
            }
        }
        k = (k + 4) & mask;
    }
}

/// Adds the products of input `I` of an iteration: values of A with a row of each panel. Returns true if it was
/// the last input.
///
/// # Safety
/// Each of `a` must be readable for `I + 1` floats, each of `panels` for `(I + 1) * NR`.
#[inline(always)]
unsafe fn step<const I: usize, const P: usize>(
    sums: &mut Sums<P>,
    a: [*const f32; MR],
    panels: [*const f32; P],
    left: usize,
) -> bool {
    // SAFETY: guaranteed by the caller; see `# Safety` above.
    unsafe {
        let weights = panels.map(|panel| load_row(panel.add(I * NR)));
        for (r, (row, value)) in sums.iter_mut().zip(a).enumerate() {
            let value = F32x4::load_splat(value.add(I));
            for (sums, weights) in row.iter_mut().zip(weights) {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = value.mul_add(weight, *sum);
                }
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
