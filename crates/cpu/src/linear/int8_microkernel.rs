//! Dot products of quantised activations and signed bytes, summed exactly in int32.
//!
//! Weights are widened to int16 before the kernel's loop, which can then use SIMD128's own int16 dot product.
//! That leaves room for activations of more than 8 bits: 12 and a sign wherever sums still fit int32, so that
//! nearly all of the error comes from the weights. It also leaves room for sums of two weights or activations,
//! so that products can be divided as in Strassen's algorithm. That is exact here, since int32 wraps and the
//! results fit.
//!
//! Relaxed SIMD's dot product of bytes gives the same result everywhere only if one operand has 7 bits, and
//! that loses too much accuracy: the cosine similarity of the embeddings to float32's falls below 0.999. On x86
//! processors without an instruction for it, it is emulated by two multiplications, the same number as needed
//! here.

use crate::runtime::simd::{F32x4, LANES};

/// Rows of a tile: rows of the activations.
pub(crate) const MR: usize = 4;
/// Columns of a tile: outputs of the layer.
pub(crate) const NR: usize = 8;
/// Number of sums of a tile.
pub(crate) const TILE: usize = MR * NR;
/// Number of inputs whose weights are adjacent: the products that one 32-bit lane sums.
pub(crate) const PAIR: usize = 2;
/// Number of inputs per iteration of the kernel's loop.
pub(crate) const UNROLL: usize = 8;
/// The maximum number of inputs whose sum is guaranteed to fit int32 with activations of 8 bits.
pub(crate) const MAX_DEPTH: usize = i32::MAX as usize / (127 * 128);

pub(crate) use imp::interleave;

/// A tile of activations and the panels of weights it is multiplied by.
pub(crate) struct TileProduct<'a> {
    /// For each pair of inputs in turn, the values of MR rows.
    pub a: &'a [i16],
    /// Panels with the same number of inputs; each holds, for each pair of inputs in turn, the weights of NR
    /// outputs.
    pub panels: &'a [i16],
}

impl TileProduct<'_> {
    /// Adds each panel's sums to TILE values, starting at the share's index, or subtracts them; consecutive
    /// panels' sums are `step` apart.
    #[inline(always)]
    pub fn add(&self, sums: &mut [i32], step: usize, shares: &[(usize, bool)]) {
        let depth = self.a.len() / MR;
        let count = self.panels.len() / (NR * depth);
        assert!(depth > 0 && depth.is_multiple_of(UNROLL) && shares.len() <= 2);
        let mut targets = [(std::ptr::null_mut(), false); 2];
        for (target, &(first, negative)) in targets.iter_mut().zip(shares) {
            let target_sums = &mut sums[first..];
            assert!(count > 0 && target_sums.len() >= (count - 1) * step + TILE);
            *target = (target_sums.as_mut_ptr(), negative);
        }
        let job = Job {
            a: self.a.as_ptr(),
            panels: self.panels.as_ptr(),
            depth,
            count,
            targets: &targets[..shares.len()],
            step,
        };
        // SAFETY: the slices hold `count` panels of `depth` inputs, a multiple of UNROLL, and the targets'
        // lengths are asserted above.
        unsafe { imp::multiply(&job) }
    }
}

/// The operands and targets of the kernel.
struct Job<'a> {
    /// `depth * MR` values.
    a: *const i16,
    /// `count` times `depth * NR` values.
    panels: *const i16,
    /// A positive multiple of UNROLL.
    depth: usize,
    count: usize,
    /// `count` times TILE sums, `step` apart, and whether to subtract from them.
    targets: &'a [(*mut i32, bool)],
    step: usize,
}

/// `sum · row_scale · scale + bias` for a panel's outputs. Rounded twice on every level, so that all give the
/// same bits.
#[inline(always)]
pub(crate) fn scaled(
    sums: &[i32],
    row_scale: f32,
    scales: &[f32; NR],
    bias: &[f32; NR],
) -> [f32; NR] {
    let mut out = [0.0; NR];
    let vectors = out.as_chunks_mut::<LANES>().0.iter_mut();
    let scales = scales.as_chunks::<LANES>().0;
    let bias = bias.as_chunks::<LANES>().0;
    let sums = sums.as_chunks::<LANES>().0;
    for (((out, sums), scales), bias) in vectors.zip(sums).zip(scales).zip(bias) {
        // SAFETY: each is as many floats as a vector has lanes.
        unsafe {
            let scale = F32x4::load(scales.as_ptr()).mul(F32x4::splat(row_scale));
            let sums = imp::to_float(sums).mul(scale);
            sums.add(F32x4::load(bias.as_ptr())).store(out.as_mut_ptr());
        }
    }
    out
}

/// The largest quantised activation: 12 bits, or fewer if the sum of `depth` products would otherwise overflow
/// int32.
fn activation_limit(depth: usize) -> usize {
    (i32::MAX as usize / (128 * depth.max(1))).min(4095)
}

/// Quantises a row of activations symmetrically into `out`, whose length is a multiple of 8 and at least the
/// row's; the rest is set to zero. Returns the row's scale. For a row with values that aren't finite the scale
/// is NaN, which makes all its results NaN.
pub(crate) fn quantise_row(x: &[f32], out: &mut [i16]) -> f32 {
    let largest = imp::largest(x);
    if !largest.is_finite() {
        out.fill(0);
        return f32::NAN;
    }
    // Rows of almost zero norm are quantised to zeros: the factor must be finite.
    let largest = largest.max(1e-30);
    let limit = activation_limit(out.len()) as f32;
    imp::quantise(x, limit / largest, out);
    largest / limit
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod imp {
    use core::arch::wasm32::*;
    use std::hint::black_box;

    use super::*;

    type Sums = [[v128; 2]; MR];

    /// # Safety
    /// The job's pointers must be valid for the lengths documented on its fields.
    #[inline(never)]
    pub unsafe fn multiply(job: &Job) {
        // As in the float32 GEMM, LLVM must neither predict k nor mix the steps: hence the opaque mask, and
        // exits that are never taken.
        let mask = black_box(usize::MAX);
        let depth = job.depth;
        for index in 0..job.count {
            // SAFETY: the caller's guarantee covers every pointer: the steps end with input `depth - 1`.
            unsafe {
                // With one pointer for each row; otherwise V8 computes the address of each value.
                let a: [_; MR] = std::array::from_fn(|r| job.a.add(r * PAIR));
                let panel = job.panels.add(index * depth * NR);
                let mut sums: Sums = [[i32x4_splat(0); 2]; MR];
                let mut k = 0;
                loop {
                    let (rows, weights) = (a.map(|row| row.add(k * MR)), panel.add(k * NR));
                    let left = depth - k;
                    if step::<0>(&mut sums, rows, weights, left)
                        || step::<1>(&mut sums, rows, weights, left)
                        || step::<2>(&mut sums, rows, weights, left)
                        || step::<3>(&mut sums, rows, weights, left)
                    {
                        break;
                    }
                    k = (k + UNROLL) & mask;
                }
                for &(target, negative) in job.targets {
                    let target: *mut v128 = target.add(index * job.step).cast();
                    for (v, &sum) in sums.as_flattened().iter().enumerate() {
                        let old = v128_load(target.add(v));
                        let new = if negative {
                            i32x4_sub(old, sum)
                        } else {
                            i32x4_add(old, sum)
                        };
                        v128_store(target.add(v), new);
                    }
                }
            }
        }
    }

    /// Adds the products of pair of inputs `I` of an iteration. Returns true if it was the last pair.
    ///
    /// # Safety
    /// Each of `a` must be readable for `I + 1` pairs, MR pairs apart, and `weights` for `I + 1` pairs of NR
    /// outputs.
    #[inline(always)]
    unsafe fn step<const I: usize>(
        sums: &mut Sums,
        a: [*const i16; MR],
        weights: *const i16,
        left: usize,
    ) -> bool {
        // SAFETY: guaranteed by the caller; no load needs alignment.
        unsafe {
            let weights = weights.add(I * PAIR * NR);
            let weights = [v128_load(weights.cast()), v128_load(weights.add(NR).cast())];
            for (row, a) in sums.iter_mut().zip(a) {
                let values = v128_load32_splat(a.add(I * MR * PAIR).cast());
                for (sum, weight) in row.iter_mut().zip(weights) {
                    *sum = i32x4_add(*sum, i32x4_dot_i16x8(values, weight));
                }
            }
        }
        left == (I + 1) * PAIR
    }

    #[inline(always)]
    pub fn to_float(sums: &[i32; LANES]) -> F32x4 {
        // SAFETY: the slice has as many integers as a vector has lanes.
        F32x4(f32x4_convert_i32x4(unsafe {
            v128_load(sums.as_ptr().cast())
        }))
    }

    /// Interleaves MR rows: for each pair of inputs in turn, the values of all rows. The rows have the same
    /// length, a multiple of UNROLL.
    pub fn interleave(rows: [&[i16]; MR], out: &mut [i16]) {
        let rows = rows.map(|row| row.as_chunks::<UNROLL>().0);
        for (k, out) in out
            .as_chunks_mut::<{ UNROLL * MR }>()
            .0
            .iter_mut()
            .enumerate()
        {
            // SAFETY: a chunk is one vector, and `out` is four.
            unsafe {
                let [a, b, c, d] = rows.map(|row| v128_load(row[k].as_ptr().cast()));
                let (ac0, ac1) = (
                    i32x4_shuffle::<0, 4, 1, 5>(a, c),
                    i32x4_shuffle::<2, 6, 3, 7>(a, c),
                );
                let (bd0, bd1) = (
                    i32x4_shuffle::<0, 4, 1, 5>(b, d),
                    i32x4_shuffle::<2, 6, 3, 7>(b, d),
                );
                let out: *mut v128 = out.as_mut_ptr().cast();
                v128_store(out, i32x4_shuffle::<0, 4, 1, 5>(ac0, bd0));
                v128_store(out.add(1), i32x4_shuffle::<2, 6, 3, 7>(ac0, bd0));
                v128_store(out.add(2), i32x4_shuffle::<0, 4, 1, 5>(ac1, bd1));
                v128_store(out.add(3), i32x4_shuffle::<2, 6, 3, 7>(ac1, bd1));
            }
        }
    }

    /// Rounds `x · factor` into `out` and pads it with zeros.
    pub fn quantise(x: &[f32], factor: f32, out: &mut [i16]) {
        let (chunks, rest) = x.as_chunks::<8>();
        let (targets, _) = out.as_chunks_mut::<8>();
        for (chunk, target) in chunks.iter().zip(&mut *targets) {
            quantise_8(chunk, factor, target);
        }
        if let Some(([target, spare @ ..], [_, ..])) =
            targets.get_mut(chunks.len()..).zip(Some(rest))
        {
            let mut padded = [0.0; 8];
            padded[..rest.len()].copy_from_slice(rest);
            quantise_8(&padded, factor, target);
            spare.as_flattened_mut().fill(0);
        }
    }

    /// 1.5 · 2²³: added to a small float, it leaves the rounded integer in the low bits.
    const ROUNDER: f32 = 12_582_912.0;

    /// Eight rounded integers.
    #[inline(always)]
    fn quantise_8(values: &[f32; 8], factor: f32, out: &mut [i16; 8]) {
        let [low, high] = [0, 4].map(|first| {
            // SAFETY: `values` has four floats starting at 0 and at 4.
            let values = unsafe { v128_load(values.as_ptr().add(first).cast()) };
            let shifted = f32x4_add(f32x4_mul(values, f32x4_splat(factor)), f32x4_splat(ROUNDER));
            i32x4_sub(shifted, i32x4_splat(ROUNDER.to_bits() as i32))
        });
        // SAFETY: `out` is eight values.
        unsafe { v128_store(out.as_mut_ptr().cast(), i16x8_narrow_i32x4(low, high)) }
    }

    /// The largest magnitude, found by comparing bits as integers: NaN and infinities compare larger than any
    /// number.
    pub fn largest(x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<4>();
        let mut most = i32x4_splat(0);
        for chunk in chunks {
            // SAFETY: a chunk is four floats.
            let bits = f32x4_abs(unsafe { v128_load(chunk.as_ptr().cast()) });
            most = i32x4_max(most, bits);
        }
        let lanes = [
            i32x4_extract_lane::<0>(most),
            i32x4_extract_lane::<1>(most),
            i32x4_extract_lane::<2>(most),
            i32x4_extract_lane::<3>(most),
        ];
        let rest = rest.iter().map(|value| value.abs().to_bits() as i32);
        f32::from_bits(lanes.into_iter().chain(rest).max().unwrap_or(0) as u32)
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    use super::*;

    /// # Safety
    /// The job's pointers must be valid for the lengths documented on its fields.
    pub unsafe fn multiply(job: &Job) {
        for index in 0..job.count {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let (a, panel) = unsafe {
                (
                    std::slice::from_raw_parts(job.a, job.depth * MR),
                    std::slice::from_raw_parts(
                        job.panels.add(index * job.depth * NR),
                        job.depth * NR,
                    ),
                )
            };
            let mut sums = [0i32; TILE];
            for (a, weights) in a.chunks(MR * PAIR).zip(panel.chunks(NR * PAIR)) {
                for (row, a) in sums.chunks_mut(NR).zip(a.chunks(PAIR)) {
                    for (sum, weights) in row.iter_mut().zip(weights.chunks(PAIR)) {
                        for (&a, &weight) in a.iter().zip(weights) {
                            *sum = sum.wrapping_add(i32::from(a) * i32::from(weight));
                        }
                    }
                }
            }
            for &(target, negative) in job.targets {
                // SAFETY: guaranteed by the caller; see `# Safety` above.
                let target =
                    unsafe { std::slice::from_raw_parts_mut(target.add(index * job.step), TILE) };
                for (target, sum) in target.iter_mut().zip(sums) {
                    *target = target.wrapping_add(if negative { sum.wrapping_neg() } else { sum });
                }
            }
        }
    }

    pub fn to_float(sums: &[i32; LANES]) -> F32x4 {
        let sums = sums.map(|sum| sum as f32);
        // SAFETY: the array is four floats.
        unsafe { F32x4::load(sums.as_ptr()) }
    }

    /// Interleaves MR rows: for each pair of inputs in turn, the values of all rows. The rows have the same
    /// length, a multiple of UNROLL.
    pub fn interleave(rows: [&[i16]; MR], out: &mut [i16]) {
        for (k, out) in out.chunks_mut(MR * PAIR).enumerate() {
            for (row, out) in rows.iter().zip(out.chunks_mut(PAIR)) {
                out.copy_from_slice(&row[k * PAIR..][..PAIR]);
            }
        }
    }

    /// The largest magnitude; NaN compares larger than any number.
    pub fn largest(x: &[f32]) -> f32 {
        let bits = x.iter().map(|value| value.abs().to_bits()).max();
        f32::from_bits(bits.unwrap_or(0))
    }

    /// Rounds `x · factor` into `out` and pads it with zeros.
    pub fn quantise(x: &[f32], factor: f32, out: &mut [i16]) {
        out.fill(0);
        for (target, value) in out.iter_mut().zip(x) {
            *target = (value * factor).round_ties_even() as i16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    #[test]
    fn the_largest_sums_fit() {
        for depth in [8, 768, 4096, 4104, 40_000, MAX_DEPTH] {
            let limit = activation_limit(depth);
            assert!((127..=4095).contains(&limit));
            assert!(depth * limit * 128 <= i32::MAX as usize);
        }
    }

    proptest! {
        #[test]
        fn rows_are_within_half_a_step(len in 0usize..70, seed in any::<u64>(), power in -20i32..20) {
            let x: Vec<f32> = values(len, seed).iter().map(|v| v * 2f32.powi(power)).collect();
            let mut out = vec![1; len.next_multiple_of(8) + 8];
            let scale = quantise_row(&x, &mut out);
            for (value, quantised) in x.iter().zip(&out) {
                prop_assert!((value - f32::from(*quantised) * scale).abs() <= scale * 0.501);
            }
            prop_assert!(out[len..].iter().all(|&value| value == 0));
        }
    }

    #[test]
    fn rows_without_a_scale() {
        let mut out = [1; 8];
        for x in [[0.0; 3], [1e-40; 3]] {
            let scale = quantise_row(&x, &mut out);
            assert!(scale > 0.0 && scale < 1e-30 && out == [0; 8]);
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantise_row(&[1.0, bad, 2.0], &mut out).is_nan());
            assert_eq!(out, [0; 8]);
        }
        let scale = quantise_row(&[f32::MAX, -f32::MAX], &mut out);
        assert_eq!((scale, out[0], out[1]), (f32::MAX / 4095.0, 4095, -4095));
    }
}
