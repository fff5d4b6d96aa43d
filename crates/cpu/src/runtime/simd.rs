//! Four float32 lanes: SIMD128 on wasm32, arrays elsewhere, so that native tests run the same algorithms.
//!
//! `min`, `max` and comparisons behave the same on both: with NaN on the left, `min` and `max` return NaN and
//! comparisons are false, so that a NaN input reaches the output instead of being hidden.

/// The number of lanes of an [`F32x4`].
pub const LANES: usize = 4;

/// Whether [`F32x4::mul_add`] is a single instruction.
pub(crate) const FUSED: bool = cfg!(target_feature = "relaxed-simd");

/// Whether this is the wide engine, for runtimes that join two vectors into one of 256 bits: V8 with
/// `--experimental-wasm-revectorize`. It looks for pairs of vectors that are stored next to each other and
/// computed by the same operations from pairs loaded next to each other.
pub(crate) const WIDE: bool = cfg!(feature = "wide");

/// Keeps LLVM from loading a vector after it has stored the vector's neighbour: V8 joins two stores only if nothing is
/// loaded between them. Call it between the loads and the stores of neighbours.
#[inline(always)]
pub(crate) fn loads_before_stores() {
    if WIDE {
        // Compiles to no instruction. (For wasm32 without atomics, LLVM drops `compiler_fence`.)
        std::hint::black_box(());
    }
}

pub use imp::F32x4;

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod imp {
    use core::arch::wasm32::*;

    /// Four float32 lanes.
    #[derive(Clone, Copy)]
    pub struct F32x4(pub(crate) v128);

    /// A mask: all bits of each lane set or clear.
    #[derive(Clone, Copy)]
    pub struct Mask(v128);

    impl F32x4 {
        #[inline(always)]
        pub fn splat(value: f32) -> Self {
            Self(f32x4_splat(value))
        }

        /// # Safety
        /// `source` must be readable for four floats (any alignment).
        #[inline(always)]
        pub unsafe fn load(source: *const f32) -> Self {
            // SAFETY: guaranteed by the caller; v128.load accepts any alignment.
            Self(unsafe { v128_load(source.cast()) })
        }

        /// # Safety
        /// `source` must be readable for one float (any alignment).
        #[inline(always)]
        pub unsafe fn load_splat(source: *const f32) -> Self {
            // SAFETY: guaranteed by the caller; v128.load32_splat accepts any alignment.
            Self(unsafe { v128_load32_splat(source.cast()) })
        }

        /// # Safety
        /// `target` must be writable for four floats (any alignment).
        #[inline(always)]
        pub unsafe fn store(self, target: *mut f32) {
            // SAFETY: guaranteed by the caller; v128.store accepts any alignment.
            unsafe { v128_store(target.cast(), self.0) }
        }

        /// Widens four bfloat16 values.
        ///
        /// # Safety
        /// `source` must be readable for four values.
        #[inline(always)]
        pub unsafe fn load_bf16(source: *const u16) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            Self(u32x4_shl(unsafe { u32x4_load_extend_u16x4(source) }, 16))
        }

        /// Widens four finite float16 values: the bits move into a float32 whose exponent is too small by 112,
        /// which one exact multiplication corrects, for subnormals too.
        ///
        /// # Safety
        /// `source` must be readable for four values.
        #[inline(always)]
        pub unsafe fn load_f16(source: *const u16) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let bits = unsafe { u32x4_load_extend_u16x4(source) };
            let magnitude = u32x4_shl(v128_and(bits, u32x4_splat(0x7fff)), 13);
            let sign = u32x4_shl(v128_and(bits, u32x4_splat(0x8000)), 16);
            Self(v128_or(f32x4_mul(magnitude, u32x4_splat(239 << 23)), sign))
        }

        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            [
                f32x4_extract_lane::<0>(self.0),
                f32x4_extract_lane::<1>(self.0),
                f32x4_extract_lane::<2>(self.0),
                f32x4_extract_lane::<3>(self.0),
            ]
        }

        #[inline(always)]
        pub fn add(self, other: Self) -> Self {
            Self(f32x4_add(self.0, other.0))
        }

        #[inline(always)]
        pub fn sub(self, other: Self) -> Self {
            Self(f32x4_sub(self.0, other.0))
        }

        #[inline(always)]
        pub fn mul(self, other: Self) -> Self {
            Self(f32x4_mul(self.0, other.0))
        }

        #[inline(always)]
        pub fn div(self, other: Self) -> Self {
            Self(f32x4_div(self.0, other.0))
        }

        /// `self * factor + addend`: the only place that chooses between two roundings and a fused one.
        #[inline(always)]
        pub fn mul_add(self, factor: Self, addend: Self) -> Self {
            #[cfg(target_feature = "relaxed-simd")]
            {
                Self(f32x4_relaxed_madd(self.0, factor.0, addend.0))
            }
            #[cfg(not(target_feature = "relaxed-simd"))]
            {
                Self(f32x4_add(f32x4_mul(self.0, factor.0), addend.0))
            }
        }

        #[inline(always)]
        pub fn abs(self) -> Self {
            Self(f32x4_abs(self.0))
        }

        #[inline(always)]
        pub fn sqrt(self) -> Self {
            Self(f32x4_sqrt(self.0))
        }

        /// The first two lanes of both, interleaved; then the last two.
        #[inline(always)]
        pub fn interleave(self, other: Self) -> (Self, Self) {
            (
                Self(i32x4_shuffle::<0, 4, 1, 5>(self.0, other.0)),
                Self(i32x4_shuffle::<2, 6, 3, 7>(self.0, other.0)),
            )
        }

        #[inline(always)]
        pub fn min(self, other: Self) -> Self {
            Self(f32x4_pmin(self.0, other.0))
        }

        #[inline(always)]
        pub fn max(self, other: Self) -> Self {
            Self(f32x4_pmax(self.0, other.0))
        }

        #[inline(always)]
        pub fn lt(self, other: Self) -> Mask {
            Mask(f32x4_lt(self.0, other.0))
        }

        /// The float whose exponent bits are the lowest 8 bits of `self`: 2^(n − 127) for the integer n that
        /// they encode.
        #[inline(always)]
        pub fn exp2_of_low_bits(self) -> Self {
            Self(i32x4_shl(self.0, 23))
        }
    }

    impl Mask {
        #[inline(always)]
        pub fn select(self, yes: F32x4, no: F32x4) -> F32x4 {
            F32x4(v128_bitselect(yes.0, no.0, self.0))
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    use half::{bf16, f16};
    use std::array::from_fn;

    /// Four float32 lanes.
    #[derive(Clone, Copy)]
    pub struct F32x4([f32; 4]);

    /// A mask: true or false for each lane.
    #[derive(Clone, Copy)]
    pub struct Mask([bool; 4]);

    impl F32x4 {
        #[inline(always)]
        pub fn splat(value: f32) -> Self {
            Self([value; 4])
        }

        /// # Safety
        /// `source` must be readable for four floats (any alignment).
        #[inline(always)]
        pub unsafe fn load(source: *const f32) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            Self(unsafe { source.cast::<[f32; 4]>().read_unaligned() })
        }

        /// # Safety
        /// `source` must be readable for one float (any alignment).
        #[inline(always)]
        pub unsafe fn load_splat(source: *const f32) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            Self([unsafe { source.read_unaligned() }; 4])
        }

        /// # Safety
        /// `target` must be writable for four floats (any alignment).
        #[inline(always)]
        pub unsafe fn store(self, target: *mut f32) {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            unsafe { target.cast::<[f32; 4]>().write_unaligned(self.0) }
        }

        /// Widens four bfloat16 values.
        ///
        /// # Safety
        /// `source` must be readable for four values.
        #[inline(always)]
        pub unsafe fn load_bf16(source: *const u16) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let bits = unsafe { source.cast::<[u16; 4]>().read_unaligned() };
            Self(bits.map(|lane| bf16::from_bits(lane).to_f32()))
        }

        /// Widens four finite float16 values.
        ///
        /// # Safety
        /// `source` must be readable for four values.
        #[inline(always)]
        pub unsafe fn load_f16(source: *const u16) -> Self {
            // SAFETY: guaranteed by the caller; see `# Safety` above.
            let bits = unsafe { source.cast::<[u16; 4]>().read_unaligned() };
            Self(bits.map(|lane| f16::from_bits(lane).to_f32()))
        }

        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            self.0
        }

        #[inline(always)]
        fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
            Self(from_fn(|lane| op(self.0[lane], other.0[lane])))
        }

        #[inline(always)]
        pub fn add(self, other: Self) -> Self {
            self.zip(other, |a, b| a + b)
        }

        #[inline(always)]
        pub fn sub(self, other: Self) -> Self {
            self.zip(other, |a, b| a - b)
        }

        #[inline(always)]
        pub fn mul(self, other: Self) -> Self {
            self.zip(other, |a, b| a * b)
        }

        #[inline(always)]
        pub fn div(self, other: Self) -> Self {
            self.zip(other, |a, b| a / b)
        }

        /// `self * factor + addend`, with two roundings.
        #[inline(always)]
        pub fn mul_add(self, factor: Self, addend: Self) -> Self {
            self.mul(factor).add(addend)
        }

        #[inline(always)]
        pub fn abs(self) -> Self {
            Self(self.0.map(f32::abs))
        }

        #[inline(always)]
        pub fn sqrt(self) -> Self {
            Self(self.0.map(f32::sqrt))
        }

        /// The first two lanes of both, interleaved; then the last two.
        #[inline(always)]
        pub fn interleave(self, other: Self) -> (Self, Self) {
            let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
            (Self([a, e, b, f]), Self([c, g, d, h]))
        }

        #[inline(always)]
        pub fn min(self, other: Self) -> Self {
            self.zip(other, |a, b| if b < a { b } else { a })
        }

        #[inline(always)]
        pub fn max(self, other: Self) -> Self {
            self.zip(other, |a, b| if a < b { b } else { a })
        }

        #[inline(always)]
        pub fn lt(self, other: Self) -> Mask {
            Mask(from_fn(|lane| self.0[lane] < other.0[lane]))
        }

        /// The float whose exponent bits are the lowest 8 bits of `self`: 2^(n − 127) for the integer n that
        /// they encode.
        #[inline(always)]
        pub fn exp2_of_low_bits(self) -> Self {
            Self(self.0.map(|lane| f32::from_bits(lane.to_bits() << 23)))
        }
    }

    impl Mask {
        #[inline(always)]
        pub fn select(self, yes: F32x4, no: F32x4) -> F32x4 {
            F32x4(from_fn(|lane| {
                if self.0[lane] {
                    yes.0[lane]
                } else {
                    no.0[lane]
                }
            }))
        }
    }
}

impl F32x4 {
    /// Transposes a 4 × 4 matrix.
    #[inline(always)]
    pub fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        let ((ac0, ac1), (bd0, bd1)) = (a.interleave(c), b.interleave(d));
        let ((t0, t1), (t2, t3)) = (ac0.interleave(bd0), ac1.interleave(bd1));
        [t0, t1, t2, t3]
    }

    /// The sum of the lanes, added pairwise.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        let [a, b, c, d] = self.to_array();
        (a + c) + (b + d)
    }

    /// The largest lane, ignoring NaN.
    #[inline(always)]
    pub fn largest(self) -> f32 {
        let [a, b, c, d] = self.to_array();
        a.max(c).max(b.max(d))
    }
}

/// Applies `op` to every element, four at a time; the remainder goes through a padded vector.
#[inline(always)]
pub fn map_in_place(values: &mut [f32], op: impl Fn(F32x4) -> F32x4) {
    let values = if WIDE {
        let (pairs, rest) = values.as_chunks_mut::<{ 2 * LANES }>();
        for pair in pairs {
            let pointer = pair.as_mut_ptr();
            // SAFETY: the pair is eight floats.
            unsafe {
                let pair = [0, LANES].map(|v| op(F32x4::load(pointer.add(v))));
                loads_before_stores();
                pair[0].store(pointer);
                pair[1].store(pointer.add(LANES));
            }
        }
        rest
    } else {
        values
    };
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        let pointer = chunk.as_mut_ptr();
        // SAFETY: the chunk is four floats.
        unsafe { op(F32x4::load(pointer)).store(pointer) };
    }
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: `padded` is four floats.
        let result = op(unsafe { F32x4::load(padded.as_ptr()) }).to_array();
        rest.copy_from_slice(&result[..rest.len()]);
    }
}

/// `value` in all lanes, opaque to the compilers. V8 rebuilds a vector constant at every use, with three
/// instructions, one of which issues only once a cycle; an opaque value stays in a register or on the stack.
/// Create it before a loop.
#[inline(always)]
pub fn constant(value: f32) -> F32x4 {
    F32x4::splat(std::hint::black_box(value))
}

/// The exponential function for x ≤ 0, with its constants. Create it before a loop.
#[derive(Clone, Copy)]
pub struct Exp {
    lowest: F32x4,
    log2_e: F32x4,
    shift: F32x4,
    series: [F32x4; 6],
    /// 1 in all lanes.
    pub one: F32x4,
}

impl Exp {
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            lowest: constant(-64.0),
            log2_e: constant(std::f32::consts::LOG2_E),
            // Adding 1.5 · 2²³ to a small float leaves the rounded integer in the low bits; the additional 127
            // is the exponent bias.
            shift: constant(12_582_912.0 + 127.0),
            // Minimax polynomial of 2^f on [−½, ½] with value 1 at 0, error 5e-9.
            series: [
                std::f32::consts::LN_2,
                2.402_265e-1,
                5.550_357e-2,
                9.618_082e-3,
                1.339_086_3e-3,
                1.545_316_3e-4,
            ]
            .map(constant),
            one: constant(1.0),
        }
    }

    /// e^x for x ≤ 0, with a relative error of at most 1e-7 · (1 + |x|); clamped to e^−64
    /// (1.6e-28) below −64. That is effectively 0, yet no product with it is subnormal, which would make the
    /// GEMM many times slower.
    #[inline(always)]
    pub fn of_nonpositive(&self, x: F32x4) -> F32x4 {
        // e^x = 2^(n + f).
        let power = x.max(self.lowest).mul(self.log2_e);
        let shifted = power.add(self.shift);
        let f = power.sub(shifted.sub(self.shift));
        // Evaluated in pairs (Estrin): one long dependency chain would be limited by latency.
        let [c1, c2, c3, c4, c5, c6] = self.series;
        let f2 = f.mul(f);
        let high = c6.mul_add(f2, c5.mul_add(f, c4));
        let middle = c3.mul_add(f, c2);
        let low = c1.mul_add(f, self.one);
        let series = high.mul_add(f2, middle).mul_add(f2, low);
        series.mul(shifted.exp2_of_low_bits())
    }
}

/// Σ `coefficients[i]` · tⁱ, evaluated in pairs (Estrin).
#[inline(always)]
pub fn polynomial8(t: F32x4, coefficients: [F32x4; 8]) -> F32x4 {
    let [c0, c1, c2, c3, c4, c5, c6, c7] = coefficients;
    let t2 = t.mul(t);
    let (low, high) = (
        c3.mul_add(t, c2).mul_add(t2, c1.mul_add(t, c0)),
        c7.mul_add(t, c6).mul_add(t2, c5.mul_add(t, c4)),
    );
    high.mul_add(t2.mul(t2), low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp_of(x: f32) -> f32 {
        Exp::new().of_nonpositive(F32x4::splat(x)).to_array()[0]
    }

    #[test]
    fn exp_is_accurate() {
        for step in 0..=640_000 {
            let x = step as f32 * -1e-4;
            let (actual, expected) = (f64::from(exp_of(x)), f64::from(x).exp());
            let size = f64::from(x.abs());
            assert!(
                (actual - expected).abs() <= 1e-7 * (1.0 + size) * expected,
                "exp({x}) = {actual}"
            );
        }
        assert_eq!(exp_of(0.0), 1.0);
        assert!((1e-28..2e-28).contains(&exp_of(f32::NEG_INFINITY)));
        assert!(exp_of(f32::NAN).is_nan());
    }

    #[test]
    fn polynomials() {
        let coefficients = [1.0, -2.0, 3.0, 0.5, -1.0, 0.25, 2.0, -0.125];
        for t in [-1.5f32, 0.0, 0.3, 2.0] {
            let expected = coefficients.iter().rev().fold(0.0, |sum, c| sum * t + c);
            let actual = polynomial8(F32x4::splat(t), coefficients.map(F32x4::splat)).to_array()[0];
            assert!((actual - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
        }
    }

    #[test]
    fn halves_widen_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            let source = [bits; 4];
            // SAFETY: `source` is four values.
            let (wide, brain) = unsafe {
                (
                    F32x4::load_f16(source.as_ptr()),
                    F32x4::load_bf16(source.as_ptr()),
                )
            };
            assert_eq!(wide.to_array(), [half::f16::from_bits(bits).to_f32(); 4]);
            assert_eq!(brain.to_array()[0].to_bits(), u32::from(bits) << 16);
        }
    }

    #[test]
    fn map_in_place_reaches_the_ragged_end() {
        for len in 0..11 {
            let mut values: Vec<f32> = (0..len).map(|v| v as f32).collect();
            map_in_place(&mut values, |v| v.add(F32x4::splat(1.0)));
            assert_eq!(values, (0..len).map(|v| v as f32 + 1.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_become_columns() {
        let rows = [0, 1, 2, 3].map(|row| [0, 1, 2, 3].map(|column| (4 * row + column) as f32));
        // SAFETY: each row is four floats.
        let columns = F32x4::transpose(rows.map(|row| unsafe { F32x4::load(row.as_ptr()) }));
        for (column, values) in columns.into_iter().enumerate() {
            assert_eq!(values.to_array(), rows.map(|row| row[column]));
        }
    }

    #[test]
    fn reductions() {
        // SAFETY: the array is four floats.
        let lanes = unsafe { F32x4::load([1.0, -2.0, 8.0, 3.5].as_ptr()) };
        assert_eq!(lanes.sum(), 10.5);
        assert_eq!(lanes.largest(), 8.0);
    }
}
