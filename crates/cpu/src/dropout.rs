//! Dropout of activations and of attention probabilities.

use vit_msn_tensor::{Dropout, DropoutMask, Result, check_len};

use crate::elementwise::BLOCK;
use crate::runtime::parallel::{DisjointSliceMut, for_each_task, threads_for};

/// Cost of an element in multiply-adds.
const WORK: usize = 8;

/// Zeroes each element with `probability` and divides the others by 1 − probability. Its gradient is the same
/// op with the same seed.
///
/// # Errors
/// INVALID_ARGUMENT for a probability outside [0, 1] or lengths that differ.
pub fn dropout(x: &[f32], dropout: Dropout, out: &mut [f32]) -> Result<()> {
    check_len("The output of dropout", out.len(), &[x.len()])?;
    let mask = DropoutMask::new(dropout)?;
    let out = DisjointSliceMut::new(out);
    let threads = threads_for(x.len().saturating_mul(WORK));
    for_each_task(threads, x.len().div_ceil(BLOCK), &|task| {
        let first = task.index * BLOCK;
        let x = &x[first..];
        // SAFETY: each task has its own elements.
        let out = unsafe { out.get(first, BLOCK.min(x.len())) };
        apply(&mask, x, first as u32, out);
    });
    Ok(())
}

/// Applies the mask to `x`, whose first element has index `first`. LLVM vectorises this loop.
pub(crate) fn apply(mask: &DropoutMask, x: &[f32], first: u32, out: &mut [f32]) {
    for (index, (target, &value)) in (first..).zip(out.iter_mut().zip(x)) {
        let scaled = value * mask.scale;
        *target = if mask.drops(index) { 0.0 } else { scaled };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{same_with_workers, values};

    fn run(x: &[f32], probability: f64, seed: u32) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len()];
        dropout(x, Dropout { probability, seed }, &mut out).unwrap();
        out
    }

    #[test]
    fn the_mask_is_the_documented_one() {
        // Computed from the definition by an independent program.
        let expected = [2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 0.0];
        assert_eq!(run(&[1.0; 12], 0.5, 42), expected);
    }

    #[test]
    fn as_many_are_dropped_as_asked_for_whatever_the_seed() {
        let x = vec![1.0; 200_000];
        for (probability, seed) in [(0.1, 0), (0.1, 1), (0.5, 2), (0.9, u32::MAX)] {
            let out = run(&x, probability, seed);
            let dropped = out.iter().filter(|v| **v == 0.0).count() as f64 / x.len() as f64;
            let multiply_scatter = (probability * (1.0 - probability) / x.len() as f64).sqrt();
            assert!(
                (dropped - probability).abs() < 4.0 * multiply_scatter,
                "{dropped}"
            );
        }
    }

    #[test]
    fn masks_of_neighbouring_seeds_and_elements_are_unrelated() {
        let x = vec![1.0; 100_000];
        let [a, b] = [7, 8].map(|seed| run(&x, 0.5, seed));
        let share = |same: usize| same as f64 / x.len() as f64;
        let between_seeds = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        assert!((share(between_seeds) - 0.5).abs() < 0.01);
        for lag in [1, 2, 64, 384] {
            let same = a.iter().zip(&a[lag..]).filter(|(a, b)| a == b).count();
            assert!((share(same) - 0.5).abs() < 0.01, "{lag}");
        }
    }

    #[test]
    fn the_extremes_keep_all_or_none() {
        let x = values(1000, 1);
        assert_eq!(run(&x, 0.0, 3), x);
        assert!(run(&x, 1.0, 3).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = values(300_001, 2);
        same_with_workers(|| run(&x, 0.3, 9));
    }

    #[test]
    fn what_is_no_probability_is_an_error() {
        for probability in [-0.1, 1.5, f64::NAN] {
            let wrong = Dropout {
                probability,
                seed: 0,
            };
            let error = dropout(&[1.0], wrong, &mut [0.0]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
        let half = Dropout {
            probability: 0.5,
            seed: 0,
        };
        let error = dropout(&[1.0], half, &mut []).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
