//! Activations as integers: each row has its own scale and its own zero.

/// The number of steps between a row's smallest and its largest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// 254 steps: one byte.
    Byte,
    /// 16 times as many: a byte, and the rest in another, of which 4 bits are used.
    TwoBytes,
}

/// Which byte of a quantised value.
#[derive(Clone, Copy)]
pub(super) enum Byte {
    High,
    Low,
}

/// Number of bits of a low byte.
pub(super) const LOW_BITS: u32 = 4;

impl Precision {
    /// The bytes of a value, the most significant first.
    pub fn bytes(self) -> &'static [Byte] {
        match self {
            Self::Byte => &[Byte::High],
            Self::TwoBytes => &[Byte::High, Byte::Low],
        }
    }

    /// The number of bits below the high byte.
    pub fn low_bits(self) -> u32 {
        match self {
            Self::Byte => 0,
            Self::TwoBytes => LOW_BITS,
        }
    }
}

/// How a row is quantised: x ≈ (q − zero) · scale. The high byte of q is from 1 to 255, so that its signed form,
/// 128 less, has no −128: on arm64 without its dot product, two products of −128 · −128 would overflow 16 bits.
///
/// The zero is the row's own since outputs of GELU are almost all positive. Both ends of the range are rounded
/// to whole steps with it, and 0 is exact.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// NaN for a row with values that aren't finite, which makes all its results NaN.
    pub scale: f32,
    pub zero: i32,
    factor: f32,
    precision: Precision,
}

/// The number of steps, fewer if the sum of `depth` products would otherwise overflow int32.
fn steps_for(depth: usize, precision: Precision) -> usize {
    let most = i32::MAX as usize / (128 * depth.max(1)) - 1;
    most.min(254 << precision.low_bits())
}

/// The maximum number of inputs whose sum is guaranteed to fit int32 with half of a byte's steps.
pub(super) const MAX_DEPTH: usize = i32::MAX as usize / (127 * 128);

impl Steps {
    /// The steps of a row of `depth` inputs, some of which may be padding.
    pub fn of(x: &[f32], depth: usize, precision: Precision) -> Self {
        let (low, high) = imp::range(x);
        let lowest = 1 << precision.low_bits();
        if !(low.is_finite() && high.is_finite()) {
            return Self {
                scale: f32::NAN,
                zero: lowest,
                factor: 0.0,
                precision,
            };
        }
        let steps = steps_for(depth, precision) as f32;
        // The difference itself may overflow. Rows of almost zero norm are quantised to zeros: the factor must be
        // finite.
        let scale = (high / steps - low / steps).max(1e-32);
        let factor = 1.0 / scale;
        let zero = lowest - (low * factor).round_ties_even() as i32;
        Self {
            scale,
            zero,
            factor,
            precision,
        }
    }

    /// The largest q, of bytes of ones.
    fn largest(&self) -> i32 {
        (256 << self.precision.low_bits()) - 1
    }

    /// Writes one byte of each value, minus `offset`, for the dot product of bytes: groups of GROUP inputs, STRIDE
    /// bytes apart. `out` starts at the row's first group and ends with its last, a multiple of 4 groups; padding
    /// gets the zero.
    pub fn write_bytes<const STRIDE: usize>(
        &self,
        x: &[f32],
        byte: Byte,
        offset: u8,
        out: &mut [u8],
    ) {
        let (shift, mask) = match byte {
            Byte::High => (self.precision.low_bits(), 255),
            Byte::Low => (0, (1 << LOW_BITS) - 1),
        };
        let byte = Bits {
            shift,
            mask,
            offset,
        };
        imp::write_bytes::<STRIDE>(self, x, byte, out);
    }

    /// Writes a row's values minus the zero, as int16, and pads them with zeros; the length of `out` is a multiple
    /// of 8.
    pub fn write_words(&self, x: &[f32], out: &mut [i16]) {
        imp::write_words(self, x, out);
    }
}

/// The byte `(q >> shift & mask) - offset`.
struct Bits {
    shift: u32,
    mask: i16,
    offset: u8,
}

/// Number of neighbouring inputs whose products the dot product of bytes sums.
pub(super) const GROUP: usize = 4;
/// Number of inputs that are quantised together.
const CHUNK: usize = 16;

/// The smallest and the largest value of a row and 0. NaN counts as beyond infinity, on the side of its sign.
///
/// Floats of one sign are ordered as their bits are: as signed integers where positive, and as unsigned
/// integers, which puts them above all positive ones, where negative.
fn range_of_bits(signed: i32, unsigned: u32) -> (f32, f32) {
    let low = f32::from_bits(unsigned);
    (
        if low.is_sign_negative() { low } else { 0.0 },
        f32::from_bits(signed as u32),
    )
}

fn extend_range((signed, unsigned): (i32, u32), value: f32) -> (i32, u32) {
    let bits = value.to_bits();
    (signed.max(bits as i32), unsigned.max(bits))
}

/// The chunks of a row; the last is padded with zeros.
fn chunks(x: &[f32]) -> impl Iterator<Item = [f32; CHUNK]> {
    x.chunks(CHUNK).map(|values| {
        let mut chunk = [0.0; CHUNK];
        chunk[..values.len()].copy_from_slice(values);
        chunk
    })
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod imp {
    use core::arch::wasm32::*;

    use super::*;

    /// 1.5 · 2²³: added to a small float, it leaves the rounded integer in the low bits.
    const ROUNDER: f32 = 12_582_912.0;

    pub fn range(x: &[f32]) -> (f32, f32) {
        let (vectors, rest) = x.as_chunks::<4>();
        let mut most = [i32x4_splat(0); 2];
        for vector in vectors {
            // SAFETY: `vector` is four floats.
            let bits = unsafe { v128_load(vector.as_ptr().cast()) };
            most = [i32x4_max(most[0], bits), u32x4_max(most[1], bits)];
        }
        let mut lanes = [[0u32; 4]; 2];
        for (lanes, most) in lanes.iter_mut().zip(most) {
            // SAFETY: the array is as large as a vector.
            unsafe { v128_store(lanes.as_mut_ptr().cast(), most) };
        }
        let lanes = lanes[0].iter().zip(lanes[1]);
        let most = lanes.fold((0, 0), |(signed, unsigned), (&a, b)| {
            (signed.max(a as i32), unsigned.max(b))
        });
        let (signed, unsigned) = rest
            .iter()
            .fold(most, |most, &value| extend_range(most, value));
        range_of_bits(signed, unsigned)
    }

    /// Rounded steps above the zero, plus `add`, of four values.
    #[inline(always)]
    fn rounded(values: v128, factor: v128, add: i32) -> v128 {
        let shifted = f32x4_add(f32x4_mul(values, factor), f32x4_splat(ROUNDER));
        i32x4_sub(shifted, i32x4_splat(ROUNDER.to_bits() as i32 - add))
    }

    /// Two vectors as int16, saturated.
    #[inline(always)]
    fn narrow(values: &[f32], factor: v128, add: i32) -> v128 {
        let values = &values[..8];
        // SAFETY: `values` is two vectors.
        let [low, high] =
            [0, 4].map(|first| unsafe { v128_load(values.as_ptr().add(first).cast()) });
        i16x8_narrow_i32x4(rounded(low, factor, add), rounded(high, factor, add))
    }

    pub fn write_bytes<const STRIDE: usize>(steps: &Steps, x: &[f32], bits: Bits, out: &mut [u8]) {
        let factor = f32x4_splat(steps.factor);
        let most = i16x8_splat(steps.largest() as i16);
        let (mask, offset) = (i16x8_splat(bits.mask), u8x16_splat(bits.offset));
        let words = |values: &[f32]| {
            let words = i16x8_min(narrow(values, factor, steps.zero), most);
            v128_and(u16x8_shr(words, bits.shift), mask)
        };
        let bytes = |chunk: &[f32; CHUNK]| {
            let (low, high) = chunk.split_at(8);
            u8x16_sub(u8x16_narrow_i16x8(words(low), words(high)), offset)
        };
        let groups = CHUNK / GROUP;
        let mut targets = out.chunks_mut(groups * STRIDE);
        let mut write = |bytes: v128| {
            let Some(target) = targets.next() else { return };
            assert!(target.len() >= (groups - 1) * STRIDE + GROUP);
            let target = target.as_mut_ptr();
            // SAFETY: the last of the four stores ends within the length asserted above.
            unsafe {
                v128_store32_lane::<0>(bytes, target.cast());
                v128_store32_lane::<1>(bytes, target.add(STRIDE).cast());
                v128_store32_lane::<2>(bytes, target.add(2 * STRIDE).cast());
                v128_store32_lane::<3>(bytes, target.add(3 * STRIDE).cast());
            }
        };
        let (whole, rest) = x.as_chunks::<CHUNK>();
        whole.iter().for_each(|chunk| write(bytes(chunk)));
        chunks(rest).for_each(|chunk| write(bytes(&chunk)));
    }

    pub fn write_words(steps: &Steps, x: &[f32], out: &mut [i16]) {
        let factor = f32x4_splat(steps.factor);
        let most = i16x8_splat((steps.largest() - steps.zero) as i16);
        let write = |values: &[f32], out: &mut [i16]| {
            let words = i16x8_min(narrow(values, factor, 0), most);
            let out = &mut out[..8];
            // SAFETY: `out` is one vector.
            unsafe { v128_store(out.as_mut_ptr().cast(), words) };
        };
        let (whole, rest) = x.as_chunks::<8>();
        let mut targets = out.chunks_exact_mut(8);
        for (values, out) in whole.iter().zip(&mut targets) {
            write(values, out);
        }
        for chunk in chunks(rest) {
            if let Some(out) = targets.next() {
                write(&chunk, out);
            }
        }
        targets.for_each(|out| out.fill(0));
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    use super::*;

    pub fn range(x: &[f32]) -> (f32, f32) {
        let (signed, unsigned) = x
            .iter()
            .fold((0, 0), |most, &value| extend_range(most, value));
        range_of_bits(signed, unsigned)
    }

    /// Steps above the zero.
    fn rounded(steps: &Steps, value: f32) -> i32 {
        ((value * steps.factor).round_ties_even() as i32).min(steps.largest() - steps.zero)
    }

    pub fn write_bytes<const STRIDE: usize>(steps: &Steps, x: &[f32], bits: Bits, out: &mut [u8]) {
        let groups = chunks(x).flat_map(|chunk| {
            *chunk
                .as_chunks::<GROUP>()
                .0
                .first_chunk::<{ CHUNK / GROUP }>()
                .unwrap()
        });
        for (group, out) in groups.zip(out.chunks_mut(STRIDE)) {
            for (value, out) in group.into_iter().zip(out) {
                let value =
                    (rounded(steps, value) + steps.zero) >> bits.shift & i32::from(bits.mask);
                *out = (value as u8).wrapping_sub(bits.offset);
            }
        }
    }

    pub fn write_words(steps: &Steps, x: &[f32], out: &mut [i16]) {
        out.fill(0);
        for (out, &value) in out.iter_mut().zip(x) {
            *out = rounded(steps, value) as i16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    const PRECISIONS: [Precision; 2] = [Precision::Byte, Precision::TwoBytes];

    /// A row's values minus its zero, which both forms must give.
    fn quantised(x: &[f32], steps: &Steps) -> Vec<i32> {
        let depth = x.len().next_multiple_of(CHUNK);
        let mut words = vec![1; depth];
        steps.write_words(x, &mut words);
        let words: Vec<_> = words.into_iter().map(i32::from).collect();
        for offset in [0, 128] {
            let mut values = vec![0; depth];
            for &byte in steps.precision.bytes() {
                let mut bytes = vec![7; 3 * depth];
                steps.write_bytes::<{ 3 * GROUP }>(x, byte, offset, &mut bytes);
                let groups = bytes.chunks(3 * GROUP).flat_map(|group| &group[..GROUP]);
                for (value, byte) in values.iter_mut().zip(groups) {
                    *value = (*value << LOW_BITS) + i32::from(byte.wrapping_add(offset));
                }
            }
            let lowest = 1 << steps.precision.low_bits();
            assert!(
                values
                    .iter()
                    .all(|value| (lowest..=steps.largest()).contains(value))
            );
            assert!(
                values
                    .iter()
                    .zip(&words)
                    .all(|(value, word)| value - steps.zero == *word)
            );
        }
        words
    }

    #[test]
    fn the_largest_sums_fit() {
        for depth in [8, 768, 4096, 4104, 40_000, 65_793, 65_794, MAX_DEPTH] {
            for precision in PRECISIONS {
                let steps = steps_for(depth, precision);
                assert!((126..=4064).contains(&steps));
                assert!(depth * (steps + 1) * 128 <= i32::MAX as usize);
            }
        }
    }

    proptest! {
        #[test]
        fn rows_are_within_half_a_step(
            len in 0usize..70, seed in any::<u64>(), power in -20i32..20, shift in -2f32..2.0, which in 0usize..2
        ) {
            let x: Vec<f32> = values(len, seed)
                .iter()
                .map(|v| (v + shift) * 2f32.powi(power))
                .collect();
            let steps = Steps::of(&x, len, PRECISIONS[which]);
            let found = quantised(&x, &steps);
            for (value, quantised) in x.iter().zip(&found) {
                // The clamped largest value may be off by a whole step's rounding.
                prop_assert!((value - *quantised as f32 * steps.scale).abs() <= steps.scale * 0.501);
            }
            prop_assert!(found[len..].iter().all(|&value| value == 0));
        }
    }

    #[test]
    fn rows_without_a_scale() {
        for x in [[0.0; 3], [1e-40; 3], [-0.0; 3]] {
            let steps = Steps::of(&x, 3, Precision::Byte);
            assert!(steps.scale > 0.0 && steps.scale < 1e-30);
            assert!(quantised(&x, &steps).iter().all(|&value| value == 0));
        }
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(
                Steps::of(&[1.0, bad, 2.0], 3, Precision::Byte)
                    .scale
                    .is_nan()
            );
        }
        let x = [f32::MAX, -f32::MAX];
        let steps = Steps::of(&x, 2, Precision::Byte);
        assert_eq!(quantised(&x, &steps)[..2], [127, -127]);
    }

    #[test]
    fn positive_rows_have_all_steps_above_zero() {
        let x = [0.0, 1.0, 254.0];
        let steps = Steps::of(&x, 3, Precision::Byte);
        assert_eq!((steps.zero, quantised(&x, &steps)[2]), (1, 254));
        let x = [0.0, -1.0, -254.0];
        let steps = Steps::of(&x, 3, Precision::Byte);
        assert_eq!((steps.zero, quantised(&x, &steps)[2]), (255, -254));
    }
}
