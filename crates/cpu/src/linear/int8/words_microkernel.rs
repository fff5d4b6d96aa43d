//! Dot products of quantised activations and signed bytes, both widened to int16, summed exactly in int32.
//!
//! int16 leaves room for sums of two weights or activations, so that products can be divided as in Strassen's
//! algorithm. That is exact here, since int32 wraps and the results fit.

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

    /// Interleaves MR rows: for each pair of inputs in turn, the values of all rows. The rows have the same
    /// length, a multiple of UNROLL.
    pub fn interleave(rows: [&[i16]; MR], out: &mut [i16]) {
        for (k, out) in out.chunks_mut(MR * PAIR).enumerate() {
            for (row, out) in rows.iter().zip(out.chunks_mut(PAIR)) {
                out.copy_from_slice(&row[k * PAIR..][..PAIR]);
            }
        }
    }
}
