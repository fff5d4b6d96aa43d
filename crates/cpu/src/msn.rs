//! The objective of Masked Siamese Networks (Assran et al. 2022, arXiv 2204.07141): targets and the loss.

use vit_msn_tensor::{Error, MsnLoss, MsnTargets, Result, check_len, numel, try_vec, views_of};

use crate::columns::column_sums;
use crate::runtime::parallel::{
    DisjointSliceMut, for_each_block_of_rows, for_each_task, threads_for,
};
use crate::runtime::simd::Exp;
use crate::softmax::{exp_of_difference, largest};

/// Cost of an exponential in multiply-adds.
const EXP_COST: usize = 16;

/// Targets from logits `[B, K]`: softmax, sharpened to p^(1/T) / Σ, followed by the requested number of
/// Sinkhorn iterations. Each divides every column by its sum, then every row by its sum.
///
/// # Errors
/// INVALID_ARGUMENT when a length doesn't match or an option is out of range, OUT_OF_MEMORY.
pub fn msn_targets(
    logits: &[f32],
    prototypes: usize,
    options: MsnTargets,
    out: &mut [f32],
) -> Result<()> {
    options.check()?;
    whole_rows(logits, prototypes)?;
    check_len("The targets", out.len(), &[logits.len()])?;
    // softmax(x)^(1/T) / Σ is softmax(x / T). Sinkhorn amplifies tiny values, so they must be exact.
    let scale = 1.0 / options.temperature;
    let work = logits.len().saturating_mul(4 * EXP_COST);
    for_each_block_of_rows(out, prototypes, work, &|row, block| {
        for (out, row) in block
            .chunks_exact_mut(prototypes)
            .zip(logits[row * prototypes..].chunks_exact(prototypes))
        {
            let most = f64::from(largest(row));
            let mut sum = 0.0;
            for (out, &logit) in out.iter_mut().zip(row) {
                let value = ((f64::from(logit) - most) * scale).exp();
                sum += value;
                *out = value as f32;
            }
            out.iter_mut()
                .for_each(|v| *v = (f64::from(*v) / sum) as f32);
        }
    });
    for _ in 0..options.sinkhorn_iterations {
        let sums = column_sums(out, prototypes)?;
        for row in out.chunks_exact_mut(prototypes) {
            let mut sum = 0.0;
            for (value, &column) in row.iter_mut().zip(&sums) {
                // A prototype with probability 0 for every image stays at 0.
                let share = if column == 0.0 {
                    0.0
                } else {
                    f64::from(*value) / column
                };
                sum += share;
                *value = share as f32;
            }
            row.iter_mut()
                .for_each(|v| *v = (f64::from(*v) / sum) as f32);
        }
    }
    Ok(())
}

/// The loss of logits `[V · B, K]` against targets `[B, K]`, and its terms: [loss, cross_entropy, me_max,
/// entropy].
///
/// # Errors
/// INVALID_ARGUMENT when a length doesn't match or an option is out of range, OUT_OF_MEMORY.
pub fn msn_loss(
    logits: &[f32],
    targets: &[f32],
    prototypes: usize,
    weights: MsnLoss,
) -> Result<[f64; 4]> {
    let mut probs = try_vec(logits.len())?;
    let anchors = Anchors::of(logits, targets, prototypes, weights, &mut probs)?;
    let mut terms = try_vec(numel(&[anchors.rows, 2])?)?;
    let parts = DisjointSliceMut::new(&mut terms);
    for_each_task(
        threads_for(logits.len().saturating_mul(4)),
        anchors.rows,
        &|task| {
            let row = anchors.row(task.index);
            let probs = &probs[task.index * prototypes..][..prototypes];
            // SAFETY: each task has its own terms.
            let terms = unsafe { parts.get(task.index * 2, 2) };
            terms[0] = row.minus_log_prob_along(row.targets);
            terms[1] = row.minus_log_prob_along(probs);
        },
    );
    let rows = anchors.rows as f64;
    let [cross_entropy, entropy] =
        [0, 1].map(|n| terms.iter().skip(n).step_by(2).sum::<f64>() / rows);
    let of_mean = |(&mean, &log_mean): (&f64, &f64)| mean * log_mean;
    let sum: f64 = anchors
        .mean
        .iter()
        .zip(&anchors.log_mean)
        .map(of_mean)
        .sum();
    let me_max = sum + (prototypes as f64).ln();
    let loss = cross_entropy + weights.me_max_weight * me_max + weights.entropy_weight * entropy;
    Ok([loss, cross_entropy, me_max, entropy])
}

/// The gradient of [`msn_loss`]'s loss with respect to the logits. With p a row's probabilities, H their
/// entropy and l̄ the logarithms of the mean probabilities, it is p · (Σ t + λ (l̄ − Σ p l̄) − w (log p + H)) −
/// t over the number of rows.
///
/// # Errors
/// Same as [`msn_loss`].
pub fn msn_loss_backward(
    logits: &[f32],
    targets: &[f32],
    prototypes: usize,
    weights: MsnLoss,
    out: &mut [f32],
) -> Result<()> {
    check_len(
        "The gradient with respect to the logits",
        out.len(),
        &[logits.len()],
    )?;
    let anchors = Anchors::of(logits, targets, prototypes, weights, out)?;
    let share = 1.0 / anchors.rows as f64;
    let work = logits.len().saturating_mul(8);
    for_each_block_of_rows(out, prototypes, work, &|first, block| {
        for (index, probs) in block.chunks_exact_mut(prototypes).enumerate() {
            let row = anchors.row(first + index);
            let whole: f64 = row.targets.iter().map(|&t| f64::from(t)).sum();
            let entropy = row.minus_log_prob_along(probs);
            let weighted = |(&p, &mean): (&f32, &f64)| f64::from(p) * mean;
            let mean: f64 = probs.iter().zip(&anchors.log_mean).map(weighted).sum();
            for (column, out) in probs.iter_mut().enumerate() {
                let log_prob = f64::from(row.logits[column]) - row.log_sum;
                let slope = whole + weights.me_max_weight * (anchors.log_mean[column] - mean)
                    - weights.entropy_weight * (log_prob + entropy);
                let target = f64::from(row.targets[column]);
                *out = (share * (f64::from(*out) * slope - target)) as f32;
            }
        }
    });
    Ok(())
}

/// The anchors' logits and the statistics over all rows.
struct Anchors<'a> {
    logits: &'a [f32],
    targets: &'a [f32],
    prototypes: usize,
    rows: usize,
    /// ln Σ e^logit of each row.
    log_sums: Vec<f64>,
    /// The mean of the rows' probabilities.
    mean: Vec<f64>,
    /// The logarithms of the mean; 0 where the mean is 0.
    log_mean: Vec<f64>,
}

/// One row of [`Anchors`].
struct Anchor<'a> {
    logits: &'a [f32],
    targets: &'a [f32],
    log_sum: f64,
}

impl<'a> Anchors<'a> {
    /// Also writes the rows' probabilities to `probs`.
    fn of(
        logits: &'a [f32],
        targets: &'a [f32],
        prototypes: usize,
        weights: MsnLoss,
        probs: &mut [f32],
    ) -> Result<Self> {
        weights.check()?;
        let rows = whole_rows(logits, prototypes)?;
        views_of(rows, whole_rows(targets, prototypes)?)?;
        let mut log_sums = try_vec(rows)?;
        let parts = DisjointSliceMut::new(&mut log_sums);
        let work = logits.len().saturating_mul(EXP_COST);
        for_each_block_of_rows(probs, prototypes, work, &|first, block| {
            let exp = Exp::new();
            block.copy_from_slice(&logits[first * prototypes..][..block.len()]);
            for (index, row) in block.chunks_exact_mut(prototypes).enumerate() {
                let most = largest(row);
                let sum = exp_of_difference(&exp, row, most);
                row.iter_mut().for_each(|v| *v /= sum);
                // SAFETY: each block has its own rows.
                let log_sum = unsafe { parts.get(first + index, 1) };
                log_sum[0] = f64::from(most) + f64::from(sum).ln();
            }
        });
        let mut mean = column_sums(probs, prototypes)?;
        mean.iter_mut().for_each(|sum| *sum /= rows as f64);
        let log = |&mean: &f64| if mean == 0.0 { 0.0 } else { mean.ln() };
        let log_mean = mean.iter().map(log).collect();
        Ok(Self {
            logits,
            targets,
            prototypes,
            rows,
            log_sums,
            mean,
            log_mean,
        })
    }

    fn row(&self, row: usize) -> Anchor<'_> {
        let columns = self.prototypes;
        let images = self.targets.len() / columns;
        Anchor {
            logits: &self.logits[row * columns..][..columns],
            targets: &self.targets[row % images * columns..][..columns],
            log_sum: self.log_sums[row],
        }
    }
}

impl Anchor<'_> {
    /// −Σ share · log p.
    fn minus_log_prob_along(&self, shares: &[f32]) -> f64 {
        let term =
            |(&share, &logit): (&f32, &f32)| f64::from(share) * (self.log_sum - f64::from(logit));
        shares.iter().zip(self.logits).map(term).sum()
    }
}

fn whole_rows(values: &[f32], prototypes: usize) -> Result<usize> {
    if prototypes > 0 && !values.is_empty() && values.len().is_multiple_of(prototypes) {
        return Ok(values.len() / prototypes);
    }
    Err(Error::InvalidArgument(format!(
        "{} values aren't a whole number of rows of {prototypes} prototypes.",
        values.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;
    use vit_msn_tensor::testing::{self as definition, numeric_gradient, sinkhorn, softmax, wide};

    fn targets_of(logits: &[f32], k: usize, temperature: f64, iterations: u32) -> Vec<f32> {
        let options = MsnTargets {
            temperature,
            sinkhorn_iterations: iterations,
        };
        let mut out = vec![f32::NAN; logits.len()];
        msn_targets(logits, k, options, &mut out).unwrap();
        out
    }

    fn scaled(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        values(count, seed).into_iter().map(|v| v * scale).collect()
    }

    const WEIGHTS: MsnLoss = MsnLoss {
        me_max_weight: 1.7,
        entropy_weight: 0.3,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]

        #[test]
        fn targets_are_sharpened_and_balanced(
            rows in 1usize..9, k in 1usize..20, temperature in 0.1f64..2.0, iterations in 0u32..5,
        ) {
            let logits = scaled(rows * k, 1, 5.0);
            let sharp: Vec<f64> = logits.chunks(k).flat_map(|row| {
                let probs = softmax(&wide(row));
                let powers: Vec<f64> = probs.iter().map(|p| p.powf(1.0 / temperature)).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(move |p| p / sum)
            }).collect();
            let expected = sinkhorn(&sharp, k, iterations);
            assert_close(&targets_of(&logits, k, temperature, iterations), &expected, 2e-6);
        }

        #[test]
        fn losses_are_those_of_the_definition(views in 1usize..4, rows in 1usize..6, k in 1usize..40) {
            let logits = scaled(views * rows * k, 2, 8.0);
            let targets = targets_of(&scaled(rows * k, 3, 8.0), k, 0.25, 3);
                        let expected = definition::msn_loss(&wide(&logits), &targets, k, WEIGHTS);
            let terms = msn_loss(&logits, &targets, k, WEIGHTS).unwrap();
            for (term, expected) in terms.iter().zip(expected) {
                prop_assert!((term - expected).abs() <= 2e-6 * (1.0 + expected.abs()));
            }
        }

        #[test]
        fn gradients_match_finite_differences(views in 1usize..4, rows in 1usize..4, k in 1usize..7) {
            let logits = scaled(views * rows * k, 4, 3.0);
            // The targets don't need to sum to 1.
            let targets: Vec<f32> = values(rows * k, 5).into_iter().map(f32::abs).collect();
            let mut by_logits = vec![f32::NAN; logits.len()];
            msn_loss_backward(&logits, &targets, k, WEIGHTS, &mut by_logits).unwrap();
            let expected = numeric_gradient(&wide(&logits), 1e-5, |logits| {
                definition::msn_loss(logits, &targets, k, WEIGHTS)[0]
            });
            assert_close(&by_logits, &expected, 2e-6);
        }
    }

    #[test]
    fn tiny_shares_are_balanced_exactly() {
        // The first prototype's probability is e^-70 or less for every image; after balancing, it has as much
        // as the other.
        let targets = targets_of(&[-70.0, 0.0, -80.0, 0.0], 2, 1.0, 1);
        let expected = [2.0 / 3.0, 1.0 / 3.0, 0.0, 1.0].map(|v: f64| v);
        assert_close(&targets, &expected, 1e-4);
    }

    #[test]
    fn extremes_give_finite_numbers() {
        let targets = targets_of(&[1e30, -1e30, -1e30, 1e30, -1e30, -1e30], 3, 0.25, 3);
        assert_eq!(targets, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let logits = [1e30, -1e30, -1e30];
        let terms = msn_loss(&logits, &targets[..3], 3, WEIGHTS).unwrap();
        assert!(terms.iter().all(|term| term.is_finite()));
        let mut out = [f32::NAN; 3];
        msn_loss_backward(&logits, &targets[..3], 3, WEIGHTS, &mut out).unwrap();
        assert!(out.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, k) = (120, 1024);
        let logits = scaled(5 * rows * k, 6, 9.0);
        same_with_workers(|| {
            let mut out = targets_of(&logits[..rows * k], k, 0.25, 3);
            let terms = msn_loss(&logits, &out, k, WEIGHTS).unwrap();
            let mut by_logits = vec![f32::NAN; logits.len()];
            msn_loss_backward(&logits, &out, k, WEIGHTS, &mut by_logits).unwrap();
            out.extend(by_logits);
            out.extend(terms.map(|term| term as f32));
            out
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for (logits, targets, k, weight) in [
            (7, 3, 3, 1.0),
            (9, 6, 3, 1.0),
            (6, 0, 3, 1.0),
            (0, 3, 3, 1.0),
            (6, 3, 0, 1.0),
            (6, 3, 3, f64::NAN),
        ] {
            let (logits, targets) = (vec![0.0; logits], vec![0.0; targets]);
            let weights = MsnLoss {
                me_max_weight: weight,
                entropy_weight: 0.0,
            };
            let mut out = vec![0.0; logits.len()];
            let codes = [
                msn_loss(&logits, &targets, k, weights).unwrap_err(),
                msn_loss_backward(&logits, &targets, k, weights, &mut out).unwrap_err(),
            ];
            assert_eq!(codes.map(|error| error.code()), ["INVALID_ARGUMENT"; 2]);
        }
        for (temperature, len) in [(0.0, 6), (0.25, 5)] {
            let options = MsnTargets {
                temperature,
                sinkhorn_iterations: 0,
            };
            let error = msn_targets(&[0.0; 6], 3, options, &mut vec![0.0; len]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
