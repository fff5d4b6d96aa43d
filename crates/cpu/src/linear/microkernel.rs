//! Matrix multiplication over packed panels, and the linear layer built on it.
//!
//! A tile keeps MR × NR sums in registers: 6 × 8 where multiply and add are one instruction, 2 × 16 where the
//! product needs a register too, and that many only with the exits in [`multiply_panels`].
//!
//! Blocking: a wide tile stays with one panel block (KC × NR floats, 24 kB, in L1) while the rows of a block of x
//! (MC × KC floats) stream past it from L2. A tall one reads more of x than of the panel, so MR rows are copied to
//! one place and stay in L1 while a stripe of panel blocks streams past them; the stripe stays in L2 until all rows
//! have met it.

use std::ops::Range;
use std::ptr;

use vit_msn_tensor::{Activation, Error, Result, check_len, try_vec};

use crate::activation::activate_rows;
use crate::linear::int8::{Epilogue, linear_i8};
use crate::linear::packed::PackedLinear;
use crate::linear::strassen;
use crate::runtime::blocks::{block_size, blocks};
use crate::runtime::parallel::{Parts, Rows, for_each_task, tasks_for, threads_for};
use crate::runtime::simd::{F32x4, FUSED, LANES};

/// Rows and columns of a tile; a panel has as many columns.
const TILE: (usize, usize) = if FUSED { (6, 8) } else { (2, 16) };
const MR: usize = TILE.0;
pub(crate) const NR: usize = TILE.1;
/// The most inputs of a block.
pub(crate) const KC: usize = if FUSED { 512 } else { 384 };
/// The most rows of x that meet a stripe before the next.
pub(crate) const MC: usize = 320 / MR * MR;
/// The most bytes of a stripe.
const STRIPE_BYTES: usize = if FUSED { 480 << 10 } else { 0 };
/// Rows that share a pass of the activation function: enough values to be worth its preparation, and in L1 still.
const EPILOGUE_ROWS: usize = if FUSED { MR } else { MC };
/// From one of the rows that are copied to the next: a cache line more than a power of two, so that they aren't all in
/// the same set of the cache.
const COPY_STRIDE: usize = KC + 16;
pub(crate) const COPY_SIZE: usize = MR * COPY_STRIDE;

static ZEROS: [f32; NR] = [0.0; NR];

/// `out = act(x · wᵀ + bias) + residual`: x `[rows, in_features]`, out and residual `[rows, out_features]`.
/// Errors: INVALID_ARGUMENT when a length doesn't fit or the weight is incomplete, OUT_OF_MEMORY.
pub fn linear(
    x: &[f32],
    w: &PackedLinear,
    act: Activation,
    residual: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    w.check_complete()?;
    let (inputs, outputs) = (w.in_features(), w.out_features());
    let rows = x.len() / inputs;
    if !x.len().is_multiple_of(inputs) {
        return Err(Error::InvalidArgument(format!(
            "A linear layer with {inputs} inputs got {} values, which are no whole rows.",
            x.len()
        )));
    }
    check_len("The output of a linear layer", out.len(), &[rows, outputs])?;
    if let Some(residual) = residual {
        check_len(
            "The residual of a linear layer",
            residual.len(),
            &[rows, outputs],
        )?;
    }
    if let Some(quantised) = w.quantised() {
        let bias = w.padded_bias();
        let epilogue = Epilogue {
            bias,
            act,
            residual,
        };
        return linear_i8(x, inputs, quantised, epilogue, out, outputs);
    }
    let product = Product {
        x,
        w,
        act,
        residual,
    };
    if strassen::pays(rows, inputs, outputs) {
        return strassen::linear_strassen(&product, out);
    }
    // Blocks of about the same size, in whole turns of the tile's loop.
    let depth = block_size(inputs, KC, 4).min(inputs);
    let multiply_adds = rows.saturating_mul(inputs).saturating_mul(outputs);
    let threads = threads_for(multiply_adds);
    let panels = outputs.div_ceil(NR);
    let row_blocks = rows.div_ceil(MC);
    // Some tasks a thread, for balance, but each copies its rows again; alone, all panels in one, so that a block of x
    // stays in L2 longest.
    let group = panels.div_ceil(tasks_for(threads, 4).div_ceil(row_blocks.max(1)));
    let groups = panels.div_ceil(group);
    // Stripes of about the same size, too.
    let most = (STRIPE_BYTES / size_of::<f32>() / (depth * NR)).max(1);
    let stripe_panels = block_size(group, most, 1);
    // Half-width panels are widened a stripe at a time.
    let scratch_size = if w.is_full() {
        0
    } else {
        stripe_panels * depth * NR
    };
    let copy_size = if FUSED { COPY_SIZE } else { 0 };
    let mut copies = try_vec(threads * copy_size)?;
    let mut scratch = try_vec(threads * scratch_size)?;
    let (copies, scratch) = (Parts::new(&mut copies), Parts::new(&mut scratch));
    let out = Parts::new(out);
    for_each_task(threads, row_blocks * groups, &|task| {
        // SAFETY: each thread has its own scratch.
        let (copy, scratch) = unsafe {
            (
                copies.get(task.thread * copy_size, copy_size),
                scratch.get(task.thread * scratch_size, scratch_size),
            )
        };
        let row0 = task.index / groups * MC;
        let panel0 = task.index % groups * group;
        let (row_end, panel_end) = (rows.min(row0 + MC), panels.min(panel0 + group));
        for range in blocks(inputs, depth) {
            for panel in (panel0..panel_end).step_by(stripe_panels) {
                let part = Part {
                    rows: row0..row_end,
                    panels: panel..panel_end.min(panel + stripe_panels),
                    inputs: range.clone(),
                };
                // SAFETY: each task has its own rows and columns of the output.
                unsafe { product.compute(part, copy, scratch, &out) };
            }
        }
    });
    Ok(())
}

/// What [`linear`] computes.
pub(crate) struct Product<'a> {
    pub x: &'a [f32],
    pub w: &'a PackedLinear,
    pub act: Activation,
    pub residual: Option<&'a [f32]>,
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
    unsafe fn compute(&self, part: Part, copy: &mut [f32], scratch: &mut [f32], out: &Parts<f32>) {
        let (inputs, outputs) = (self.w.in_features(), self.w.out_features());
        let Part {
            rows,
            panels,
            inputs: range,
        } = part;
        let column0 = panels.start * NR;
        let columns = outputs.min(panels.end * NR) - column0;
        let start = if range.start == 0 {
            Start::From(self.w.panel_biases(panels.clone()))
        } else {
            Start::Accumulate
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
                // SAFETY: the caller's promise.
                let mut target = unsafe { out.rows(row * outputs + column0, outputs) };
                weights.multiply(x, columns, start, &mut target);
            }
            if range.end == inputs {
                // SAFETY: the caller's promise.
                unsafe { self.finish(first..last, column0, columns, out) };
            }
        }
    }

    /// Turns complete sums into the layer's output, in place.
    ///
    /// # Safety
    /// Nobody else may use these rows and columns of the output.
    #[inline(never)]
    pub unsafe fn finish(
        &self,
        rows: Range<usize>,
        column0: usize,
        columns: usize,
        out: &Parts<f32>,
    ) {
        let outputs = self.w.out_features();
        let first_value = rows.start * outputs + column0;
        // SAFETY: the caller's promise.
        let mut target = unsafe { out.rows(first_value, outputs) };
        activate_rows(self.act, target.each(rows.len(), columns));
        if let Some(residual) = self.residual {
            let rows = target.each(rows.len(), columns);
            add_rows(rows, &residual[first_value..], outputs);
        }
    }
}

/// Adds to each of `rows` the beginning of its row of `stride` values.
pub(crate) fn add_rows<'a>(
    rows: impl Iterator<Item = &'a mut [f32]>,
    others: &[f32],
    stride: usize,
) {
    for (row, others) in rows.zip(others.chunks(stride)) {
        for (value, other) in row.iter_mut().zip(others) {
            *value += other;
        }
    }
}

/// What a tile's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
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
    /// The most rows.
    pub const MOST: usize = MR;

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
    pub fn multiply(&self, a: Tile, columns: usize, start: Start, c: &mut Rows<f32>) {
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
                starts: Starts::of(start, 0, whole * NR),
                targets: target(0, whole * NR),
            };
            // SAFETY: rows were sliced to `depth` floats, panels measured above, a bias in `Starts::of`, and targets are
            // `whole * NR` floats.
            unsafe { multiply_panels(&job) };
        }
        if rest > 0 {
            let mut spare = [[0.0; NR]; MR];
            if matches!(start, Start::Accumulate) {
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
                starts: Starts::of(start, last * NR, NR),
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
    pub fn spread(&self, a: Tile, count: usize, places: &[Place], c: &mut Rows<f32>) {
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
        let job = Spread {
            depth: self.depth,
            a,
            panels: self.values.as_ptr(),
            stride: self.stride,
            count,
            targets: &targets[..places.len()],
        };
        // SAFETY: rows were sliced to `depth` floats, panels measured above, and targets are `2 * count - 1` panels wide at
        // least.
        unsafe { spread_panels(&job) };
    }

    /// [`Panels::multiply`] for any number of rows, `stride` from one to the next.
    pub fn multiply_rows(
        &self,
        a: &[f32],
        stride: usize,
        rows: usize,
        columns: usize,
        start: Start,
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
    starts: Starts,
    /// `count * NR` floats for each row.
    targets: [*mut f32; MR],
}

/// Where the sums begin: at the same `count * NR` floats for all rows, NR after NR, or at NR floats again and again, or
/// at the targets themselves.
enum Starts {
    Shared { values: *const f32, step: usize },
    Targets,
}

impl Starts {
    fn of(start: Start, first: usize, count: usize) -> Self {
        match start {
            Start::Zero => Self::Shared {
                values: ZEROS.as_ptr(),
                step: 0,
            },
            Start::From(values) => Self::Shared {
                values: values[first..][..count].as_ptr(),
                step: NR,
            },
            Start::Accumulate => Self::Targets,
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
        // SAFETY: the caller's promise covers every pointer below: the steps end with input `depth - 1`.
        unsafe {
            let targets = job.targets.map(|target| target.add(index * NR));
            let mut sums: Sums = match job.starts {
                Starts::Shared { values, step } => {
                    let values = values.add(index * step);
                    [std::array::from_fn(|v| F32x4::load(values.add(v * LANES))); MR]
                }
                Starts::Targets => targets
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

/// What [`spread_panels`] reads and writes.
struct Spread<'a> {
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
unsafe fn spread_panels(job: &Spread) {
    let mask = std::hint::black_box(usize::MAX);
    let (depth, a) = (job.depth, job.a);
    for index in 0..job.count {
        let mut sums: Sums = [[F32x4::splat(0.0); NR / LANES]; MR];
        // SAFETY: the caller's promise.
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
                    // SAFETY: the caller's promise.
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
        // SAFETY: the caller's promise: the steps end with input `depth - 1`.
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
    // SAFETY: the caller's promise.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::activate;
    use crate::test_support::{assert_close, naive_product, packed, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::Dtype;

    fn check(m: usize, k: usize, n: usize, dtype: Dtype) {
        let x = values(m * k, 3);
        let (w, weight, bias) = packed(n, k, dtype, 11);
        let mut out = vec![f32::NAN; m * n];
        linear(&x, &w, Activation::Identity, None, &mut out).unwrap();
        // Sums of k products of values below 1 in float32.
        assert_close(
            &out,
            &naive_product(&x, &weight, &bias, k),
            1e-7 * (k as f64).max(4.0),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn linear_matches_the_naive_product(m in 0usize..20, k in 1usize..70, n in 1usize..70, half in 0..3) {
            check(m, k, n, [Dtype::F32, Dtype::F16, Dtype::BF16][half as usize]);
        }
    }

    #[test]
    fn linear_crosses_every_block() {
        for (m, k, n) in [
            (1, 1, 1),
            (MC + 3, 5, 17),
            (3, 2 * KC + 1, 33),
            (2, KC + 1, 16),
            (MC + 1, KC + 7, 15),
        ] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                check(m, k, n, dtype);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for (m, k, n) in [(197, 2 * KC + 8, 70), (MC + 21, 96, 384), (2, 768, 1000)] {
            let x = values(m * k, 3);
            let residual = values(m * n, 4);
            for dtype in [Dtype::F32, Dtype::F16] {
                let (w, weight, bias) = packed(n, k, dtype, 11);
                let run = |act, residual| {
                    let mut out = vec![f32::NAN; m * n];
                    linear(&x, &w, act, residual, &mut out).unwrap();
                    out
                };
                let out = same_with_workers(|| run(Activation::Identity, None));
                assert_close(&out, &naive_product(&x, &weight, &bias, k), 1e-7 * k as f64);
                same_with_workers(|| run(Activation::Gelu, Some(&residual)));
            }
        }
    }

    #[test]
    fn activation_comes_before_the_residual() {
        // Two blocks of inputs: the epilogue must run once, after the second.
        let (m, k, n) = (5, KC + 9, 21);
        let x = values(m * k, 1);
        let residual = values(m * n, 2);
        let (w, weight, bias) = packed(n, k, Dtype::F32, 5);
        for act in [Activation::Identity, Activation::Gelu, Activation::Relu] {
            let mut out = vec![0.0; m * n];
            linear(&x, &w, act, Some(&residual), &mut out).unwrap();
            let mut activated: Vec<f32> = naive_product(&x, &weight, &bias, k)
                .into_iter()
                .map(|v| v as f32)
                .collect();
            activate(act, &mut activated);
            let expected: Vec<f64> = activated
                .iter()
                .zip(&residual)
                .map(|(&a, &r)| f64::from(a) + f64::from(r))
                .collect();
            assert_close(&out, &expected, 3e-5);
        }
    }

    #[test]
    fn without_a_bias_the_sums_start_at_zero() {
        let mut w = PackedLinear::new(1, 2, Dtype::F32, false).unwrap();
        w.set_rows(0, Dtype::F32, &Dtype::F32.encode(&[2.0, 3.0]).unwrap())
            .unwrap();
        let mut out = [f32::NAN];
        linear(&[10.0, 1.0], &w, Activation::Identity, None, &mut out).unwrap();
        assert_eq!(out, [23.0]);
    }

    #[test]
    fn wrong_lengths_and_incomplete_weights_are_errors() {
        let (w, ..) = packed(3, 4, Dtype::F32, 0);
        let act = Activation::Identity;
        let lengths = [(7, None, 6), (8, None, 5), (8, Some(5), 6)];
        for (x, residual, out) in lengths {
            let residual = residual.map(|len| vec![0.0; len]);
            let error = linear(
                &vec![0.0; x],
                &w,
                act,
                residual.as_deref(),
                &mut vec![0.0; out],
            )
            .unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let empty = PackedLinear::new(3, 4, Dtype::F32, false).unwrap();
        assert!(
            linear(&[0.0; 4], &empty, act, None, &mut [0.0; 3])
                .unwrap_err()
                .to_string()
                .contains("never set")
        );
    }

    #[test]
    fn nan_reaches_only_its_own_row() {
        let (w, ..) = packed(17, 4, Dtype::F32, 0);
        let mut x = values(12, 1);
        x[5] = f32::NAN;
        let mut out = vec![0.0; 3 * 17];
        linear(&x, &w, Activation::Gelu, None, &mut out).unwrap();
        for (index, value) in out.iter().enumerate() {
            assert_eq!(value.is_nan(), index / 17 == 1);
        }
    }
}
