//! Elementwise ops: the loop that gradients and optimisers share, addition, and the sum of squares.

use std::array::from_fn;

use vit_msn_tensor::{Result, check_len, check_momentum};

use crate::runtime::parallel::{DisjointSliceMut, for_each_task, threads_for};
use crate::runtime::simd::{F32x4, LANES, WIDE, loads_before_stores};

/// Elements per task. Fixed, so that sums don't depend on the number of threads.
pub(crate) const BLOCK: usize = 1 << 14;

/// out = x + y.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ.
pub fn add(x: &[f32], y: &[f32], out: &mut [f32]) -> Result<()> {
    check_len("The second summand", y.len(), &[x.len()])?;
    check_len("The sum", out.len(), &[x.len()])?;
    update([out], [x, y], 1, &|_, [x, y]| [x.add(y)]);
    Ok(())
}

/// target += scale · x.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ.
pub fn accumulate(target: &mut [f32], x: &[f32], scale: f32) -> Result<()> {
    check_len("The tensor to accumulate", x.len(), &[target.len()])?;
    let scale = F32x4::splat(scale);
    update([target], [x], 1, &|[sum], [x]| [x.mul_add(scale, sum)]);
    Ok(())
}

/// target = momentum · target + (1 − momentum) · source.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ or the momentum is outside [0, 1].
pub fn ema(target: &mut [f32], source: &[f32], momentum: f64) -> Result<()> {
    check_momentum(momentum)?;
    check_len(
        "The source of a moving average",
        source.len(),
        &[target.len()],
    )?;
    let [retained, taken] = [momentum, 1.0 - momentum].map(|factor| F32x4::splat(factor as f32));
    update([target], [source], 1, &|[target], [source]| {
        [target.mul_add(retained, source.mul(taken))]
    });
    Ok(())
}

/// The sum of squares, accumulated in float64 over fixed blocks.
///
/// # Errors
/// OUT_OF_MEMORY.
pub fn sum_of_squares(x: &[f32]) -> Result<f64> {
    let mut sums = vit_msn_tensor::try_vec(x.len().div_ceil(BLOCK))?;
    let parts = DisjointSliceMut::new(&mut sums);
    for_each_task(threads_for(x.len()), parts.len(), &|task| {
        let block = &x[task.index * BLOCK..];
        // SAFETY: each task has its own sum.
        let sum = &mut unsafe { parts.get(task.index, 1) }[0];
        *sum = squares_of_block(&block[..BLOCK.min(block.len())]);
    });
    Ok(sums.iter().sum())
}

fn squares_of_block(block: &[f32]) -> f64 {
    let (chunks, rest) = block.as_chunks::<LANES>();
    let square = |value: f32| f64::from(value) * f64::from(value);
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (sum, &value) in lanes.iter_mut().zip(chunk) {
            *sum += square(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().copied().map(square).sum::<f64>()
}

/// At each index, replaces the elements of `written` by the results of `op` on them and the elements of `read`,
/// four at a time and on all threads. All slices must have the same length. `work` is the cost of an element in
/// multiply-adds.
pub(crate) fn update<const W: usize, const R: usize>(
    written: [&mut [f32]; W],
    read: [&[f32]; R],
    work: usize,
    op: &(impl Fn([F32x4; W], [F32x4; R]) -> [F32x4; W] + Sync),
) {
    let len = written[0].len();
    let threads = threads_for(len.saturating_mul(work));
    let written = written.map(DisjointSliceMut::new);
    for_each_task(threads, len.div_ceil(BLOCK), &|task| {
        let first = task.index * BLOCK;
        let count = BLOCK.min(len - first);
        // SAFETY: each task has its own elements.
        let written = written
            .each_ref()
            .map(|parts| unsafe { parts.get(first, count) });
        update_block(written, read.map(|slice| &slice[first..][..count]), op);
    });
}

/// [`update`] on this thread only, in order. The last four elements are padded with 0.
#[inline(always)]
pub(crate) fn update_block<const W: usize, const R: usize>(
    mut written: [&mut [f32]; W],
    read: [&[f32]; R],
    mut op: impl FnMut([F32x4; W], [F32x4; R]) -> [F32x4; W],
) {
    let len = written[0].len();
    assert!(written.iter().all(|slice| slice.len() == len));
    assert!(read.iter().all(|slice| slice.len() == len));
    let whole = len / LANES * LANES;
    let (targets, sources) = (
        written.each_mut().map(|slice| slice.as_mut_ptr()),
        read.map(<[f32]>::as_ptr),
    );
    let mut index = 0;
    if WIDE {
        while index + 2 * LANES <= whole {
            // SAFETY: as below.
            unsafe {
                let mut compute = |index: usize| {
                    op(
                        targets.map(|target| F32x4::load(target.add(index))),
                        sources.map(|source| F32x4::load(source.add(index))),
                    )
                };
                let results = [compute(index), compute(index + LANES)];
                loads_before_stores();
                for (w, target) in targets.into_iter().enumerate() {
                    results[0][w].store(target.add(index));
                    results[1][w].store(target.add(index + LANES));
                }
            }
            index += 2 * LANES;
        }
    }
    while index < whole {
        // SAFETY: every slice has `len` floats, at least four of them starting at `index`.
        unsafe {
            let results = op(
                targets.map(|target| F32x4::load(target.add(index))),
                sources.map(|source| F32x4::load(source.add(index))),
            );
            for (target, result) in targets.into_iter().zip(results) {
                result.store(target.add(index));
            }
        }
        index += LANES;
    }
    if whole < len {
        let results = op(
            from_fn(|w| load_padded(&written[w][whole..])),
            from_fn(|r| load_padded(&read[r][whole..])),
        );
        for (target, result) in written.iter_mut().zip(results) {
            target[whole..].copy_from_slice(&result.to_array()[..len - whole]);
        }
    }
}

/// Loads fewer than four floats, padded with zeros.
fn load_padded(values: &[f32]) -> F32x4 {
    let mut padded = [0.0; LANES];
    padded[..values.len()].copy_from_slice(values);
    // SAFETY: the array is four floats.
    unsafe { F32x4::load(padded.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};

    #[test]
    fn sums_reach_every_element() {
        for len in [0, 1, 3, 4, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 5] {
            let (x, y) = (values(len, 1), values(len, 2));
            let mut out = vec![f32::NAN; len];
            add(&x, &y, &mut out).unwrap();
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(out, expected);
            let mut target = y.clone();
            accumulate(&mut target, &x, 0.5).unwrap();
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * 0.5 + y).collect();
            assert_eq!(target, expected);
        }
    }

    #[test]
    fn moving_averages_reach_every_element() {
        for len in [0, 1, 5, BLOCK + 3] {
            let (start, source) = (values(len, 1), values(len, 2));
            for momentum in [0.0, 0.996, 1.0] {
                let mut target = start.clone();
                ema(&mut target, &source, momentum).unwrap();
                let average = |(&t, &s): (&f32, &f32)| {
                    momentum * f64::from(t) + (1.0 - momentum) * f64::from(s)
                };
                let expected: Vec<f64> = start.iter().zip(&source).map(average).collect();
                assert_close(&target, &expected, 1e-7);
            }
        }
        for (target, source, momentum) in [(2, 3, 0.5), (2, 2, 1.1), (2, 2, f64::NAN)] {
            let error = ema(&mut vec![0.0; target], &vec![0.0; source], momentum).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }

    #[test]
    fn squares_are_summed_in_float64() {
        assert_eq!(sum_of_squares(&[]).unwrap(), 0.0);
        let x = values(3 * BLOCK + 11, 3);
        let expected: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((sum_of_squares(&x).unwrap() - expected).abs() <= 1e-12 * expected);
        assert_eq!(
            sum_of_squares(&[1e30, 1e30]).unwrap(),
            2.0 * f64::from(1e30f32).powi(2)
        );
        assert!(sum_of_squares(&[1.0, f32::NAN]).unwrap().is_nan());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, y) = (values(800_003, 4), values(800_003, 5));
        same_with_workers(|| {
            let mut out = vec![0.0; x.len()];
            add(&x, &y, &mut out).unwrap();
            out.push(sum_of_squares(&x).unwrap() as f32);
            out
        });
    }

    #[test]
    fn wrong_lengths_are_errors() {
        for (x, y, out) in [(3, 2, 3), (3, 3, 2)] {
            let error = add(&vec![0.0; x], &vec![0.0; y], &mut vec![0.0; out]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let error = accumulate(&mut [0.0; 2], &[0.0; 3], 1.0).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
