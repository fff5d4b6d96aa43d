//! Dot products of quantised activations and signed bytes, summed exactly in int32.
//!
//! Weights are widened to int16 before the kernel's loop, which then is SIMD128's own int16 dot product. That leaves room
//! for more than 8 bits in the activations: 12 and a sign wherever sums still fit int32, so that nearly all of the error
//! is the weights'.
//!
//! Relaxed SIMD's dot product of bytes would need one operand of 7 bits to be the same everywhere, and that loses too
//! much: the cosine of the embeddings to float32's falls below 0.999. Where the processor has no instruction for it, x86
//! emulates it by two multiplications, as many as are needed here.

use crate::simd::F32x4;

/// Rows of a tile: of the activations.
pub(crate) const MR: usize = 4;
/// Columns of a tile: outputs of the layer.
pub(crate) const NR: usize = 8;
/// Inputs whose weights lie side by side: what one 32-bit lane sums.
pub(crate) const PAIR: usize = 2;
/// The most inputs whose sum is sure to fit int32 with activations of 8 bits.
pub(crate) const MAX_DEPTH: usize = i32::MAX as usize / (127 * 128);

pub(crate) use imp::widen;

/// Everything that one tile reads and writes.
pub(crate) struct Tile {
    /// Rows of quantised activations, `depth` values each.
    pub a: [*const i16; MR],
    /// The rows' scales.
    pub row_scales: [f32; MR],
    /// `depth * NR` weights, pair of inputs after pair of inputs.
    pub panel: *const i16,
    /// NR scales of the outputs.
    pub scales: *const f32,
    /// NR biases.
    pub bias: *const f32,
    /// NR floats of each row of the result.
    pub targets: [*mut f32; MR],
    /// A multiple of 8, at least 8.
    pub depth: usize,
}

impl Tile {
    /// `target = sum · row_scale · scale + bias`.
    ///
    /// # Safety
    /// Every pointer must be valid for what its field says.
    #[inline(always)]
    pub unsafe fn multiply(&self) {
        // SAFETY: the caller's promise.
        unsafe { imp::multiply(self) }
    }
}

/// Scales the sums of a row and stores them.
///
/// # Safety
/// `tile`'s pointers must be valid.
#[inline(always)]
unsafe fn store_row(tile: &Tile, row: usize, sums: [F32x4; 2]) {
    let row_scale = F32x4::splat(tile.row_scales[row]);
    for (v, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise: scales, bias and targets are NR floats.
        unsafe {
            let scale = F32x4::load(tile.scales.add(4 * v)).mul(row_scale);
            // Two roundings on every level, so that all give the same bits.
            sum.mul(scale)
                .add(F32x4::load(tile.bias.add(4 * v)))
                .store(tile.targets[row].add(4 * v));
        }
    }
}

/// The largest quantised activation: 12 bits, or as many as leave the sum of `depth` products in int32.
fn activation_limit(depth: usize) -> usize {
    (i32::MAX as usize / (128 * depth.max(1))).min(4095)
}

/// Quantises a row of activations symmetrically into `out`, whose length is a multiple of 8 and at least the row's; the
/// rest becomes zero. Returns its scale, NaN for a row that isn't finite, so that all its results are NaN.
pub(crate) fn quantise_row(x: &[f32], out: &mut [i16]) -> f32 {
    let largest = imp::largest(x);
    if !largest.is_finite() {
        out.fill(0);
        return f32::NAN;
    }
    // Rows of nearly nothing are taken as zeros: the factor must be finite.
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
    /// [`Tile::multiply`]'s.
    #[inline(never)]
    pub unsafe fn multiply(tile: &Tile) {
        // SAFETY: the caller's promise covers every pointer: the steps end with input `depth - 1`.
        unsafe {
            let mut sums: Sums = [[i32x4_splat(0); 2]; MR];
            // As in the float32 GEMM, LLVM must neither foresee k nor mix the steps: hence the mask, and exits that are
            // never taken.
            let mask = black_box(usize::MAX);
            let (a, panel, depth) = (tile.a, tile.panel, tile.depth);
            let mut k = 0;
            loop {
                let (rows, weights) = (a.map(|row| row.add(k)), panel.add(k * NR));
                let left = depth - k;
                accumulate(&mut sums, rows, weights);
                if left == 2 {
                    break;
                }
                accumulate(&mut sums, rows.map(|row| row.add(2)), weights.add(2 * NR));
                if left == 4 {
                    break;
                }
                accumulate(&mut sums, rows.map(|row| row.add(4)), weights.add(4 * NR));
                if left == 6 {
                    break;
                }
                accumulate(&mut sums, rows.map(|row| row.add(6)), weights.add(6 * NR));
                if left == 8 {
                    break;
                }
                k = (k + 8) & mask;
            }
            for (row, sums) in sums.into_iter().enumerate() {
                store_row(tile, row, sums.map(|sum| F32x4(f32x4_convert_i32x4(sum))));
            }
        }
    }

    /// Two inputs.
    ///
    /// # Safety
    /// Each of `a` must be readable for two values, `weights` for 2 · NR.
    #[inline(always)]
    unsafe fn accumulate(sums: &mut Sums, a: [*const i16; MR], weights: *const i16) {
        // SAFETY: the caller's promise; no load needs alignment.
        unsafe {
            let weights = [v128_load(weights.cast()), v128_load(weights.add(NR).cast())];
            for (row, a) in sums.iter_mut().zip(a) {
                let values = v128_load32_splat(a.cast());
                for (sum, weight) in row.iter_mut().zip(weights) {
                    *sum = i32x4_add(*sum, i32x4_dot_i16x8(values, weight));
                }
            }
        }
    }

    /// Sign-extends bytes, as many as fill `out`.
    pub fn widen(bytes: &[i8], out: &mut [i16]) {
        let (sources, targets) = (bytes.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
        for (source, target) in sources.iter().zip(targets) {
            // SAFETY: both are eight values.
            unsafe {
                v128_store(
                    target.as_mut_ptr().cast(),
                    i16x8_load_extend_i8x8(source.as_ptr()),
                );
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
            // SAFETY: `values` has four floats from 0 and from 4 on.
            let values = unsafe { v128_load(values.as_ptr().add(first).cast()) };
            let shifted = f32x4_add(f32x4_mul(values, f32x4_splat(factor)), f32x4_splat(ROUNDER));
            i32x4_sub(shifted, i32x4_splat(ROUNDER.to_bits() as i32))
        });
        // SAFETY: `out` is eight values.
        unsafe { v128_store(out.as_mut_ptr().cast(), i16x8_narrow_i32x4(low, high)) }
    }

    /// The largest magnitude, by comparing bits as integers: NaN and infinities are larger than any number.
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
    /// [`Tile::multiply`]'s.
    pub unsafe fn multiply(tile: &Tile) {
        for row in 0..MR {
            let mut sums = [0; NR];
            for k in 0..tile.depth {
                // SAFETY: the caller's promise: k is one of the row's values, the weights are the panel's.
                unsafe {
                    let a = i32::from(*tile.a[row].add(k));
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let at = (k / PAIR * NR + column) * PAIR + k % PAIR;
                        *sum += a * i32::from(*tile.panel.add(at));
                    }
                }
            }
            let sums = sums.map(|sum| sum as f32);
            // SAFETY: `sums` is two times four floats; the rest is the caller's promise.
            unsafe {
                let halves = [
                    F32x4::load(sums.as_ptr()),
                    F32x4::load(sums.as_ptr().add(4)),
                ];
                store_row(tile, row, halves);
            }
        }
    }

    /// Sign-extends bytes, as many as fill `out`.
    pub fn widen(bytes: &[i8], out: &mut [i16]) {
        for (target, &byte) in out.iter_mut().zip(bytes) {
            *target = i16::from(byte);
        }
    }

    /// The largest magnitude; NaN counts as larger than any number.
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
