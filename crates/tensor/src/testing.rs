//! What the tests of all backends share: pseudo-random values, comparisons, and reference definitions in float64. Needs
//! the feature "testing", which no build of the engine enables.

use crate::MsnLoss;

/// `count` pseudo-random values in −1..1, the same on every run.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x1234_5678_9abc_def1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Asserts that every value is within `tolerance` · (1 + |expected|).
pub fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - e).abs();
        assert!(
            error <= tolerance * (1.0 + e.abs()),
            "element {index}: {a} instead of {e}"
        );
    }
}

/// Float32 values as float64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The central differences of `loss` at `values`.
pub fn numeric_gradient(values: &[f64], step: f64, loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    (0..values.len())
        .map(|index| {
            let at = |offset: f64| {
                let mut moved = values.to_vec();
                moved[index] += offset;
                loss(&moved)
            };
            (at(step) - at(-step)) / (2.0 * step)
        })
        .collect()
}

/// Batch normalisation from its definition: y, mean and biased variance.
pub fn batch_norm(x: &[f64], weight: &[f32], bias: &[f32], eps: f64) -> [Vec<f64>; 3] {
    let columns = weight.len();
    let rows = (x.len() / columns) as f64;
    let column = |c: usize| x.iter().skip(c).step_by(columns);
    let mean: Vec<f64> = (0..columns)
        .map(|c| column(c).sum::<f64>() / rows)
        .collect();
    let square = |c: usize| column(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / rows;
    let variance: Vec<f64> = (0..columns).map(square).collect();
    let y = x.iter().enumerate().map(|(index, x)| {
        let c = index % columns;
        let normalised = (x - mean[c]) / (variance[c] + eps).sqrt();
        normalised * f64::from(weight[c]) + f64::from(bias[c])
    });
    [y.collect(), mean, variance]
}

/// Cosines of the rows of `x` with those of `prototypes`, divided by the temperature.
pub fn cosines(x: &[f64], prototypes: &[f64], width: usize, temperature: f64) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    x.chunks(width)
        .flat_map(|x| prototypes.chunks(width).map(move |p| (x, p)))
        .map(|(x, p)| cosine(x, p) / temperature)
        .collect()
}

/// A softmax from its definition.
pub fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = row.iter().map(|v| (v - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|v| v / sum).collect()
}

/// Sinkhorn iterations as in MSN's code, but on the transpose: `targets` is `[rows, k]`.
pub fn sinkhorn(targets: &[f64], k: usize, iterations: u32) -> Vec<f64> {
    let rows = targets.len() / k;
    let sum: f64 = targets.iter().sum();
    let mut q: Vec<f64> = targets.iter().map(|v| v / sum).collect();
    for _ in 0..iterations {
        for p in 0..k {
            let sum: f64 = (0..rows).map(|b| q[b * k + p]).sum();
            (0..rows).for_each(|b| q[b * k + p] /= sum * k as f64);
        }
        for row in q.chunks_mut(k) {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum * rows as f64);
        }
    }
    q.into_iter().map(|v| v * rows as f64).collect()
}

/// MSN's loss and its terms from their definitions: loss, cross-entropy, mean-entropy, entropy.
pub fn msn_loss(logits: &[f64], targets: &[f32], k: usize, weights: MsnLoss) -> [f64; 4] {
    let probs: Vec<Vec<f64>> = logits.chunks(k).map(softmax).collect();
    let (rows, images) = (probs.len(), targets.len() / k);
    let [mut cross_entropy, mut entropy] = [0.0; 2];
    for (index, row) in probs.iter().enumerate() {
        let targets = &targets[index % images * k..][..k];
        for (p, &t) in row.iter().zip(targets) {
            cross_entropy -= f64::from(t) * p.ln() / rows as f64;
            entropy -= p * p.ln() / rows as f64;
        }
    }
    let mean = |c: usize| probs.iter().map(|row| row[c]).sum::<f64>() / rows as f64;
    let me_max = (0..k).map(|c| mean(c) * mean(c).ln()).sum::<f64>() + (k as f64).ln();
    let loss = cross_entropy + weights.me_max_weight * me_max + weights.entropy_weight * entropy;
    [loss, cross_entropy, me_max, entropy]
}

/// Bicubic interpolation of a grid of cells with `width` channels each, from its definition.
pub fn interpolate(
    source: &[f32],
    (rows, columns): (usize, usize),
    (new_rows, new_columns): (usize, usize),
    width: usize,
) -> Vec<f64> {
    let kernel = |x: f64| match x.abs() {
        x if x <= 1.0 => 1.25 * x.powi(3) - 2.25 * x.powi(2) + 1.0,
        x if x < 2.0 => -0.75 * (x.powi(3) - 5.0 * x.powi(2) + 8.0 * x - 4.0),
        _ => 0.0,
    };
    let place = |index: usize, len: usize, new_len: usize| {
        (index as f64 + 0.5) * len as f64 / new_len as f64 - 0.5
    };
    let at = |row: i64, column: i64, channel: usize| {
        let row = row.clamp(0, rows as i64 - 1) as usize;
        let column = column.clamp(0, columns as i64 - 1) as usize;
        f64::from(source[(row * columns + column) * width + channel])
    };
    let mut out = Vec::new();
    for (row, column) in (0..new_rows).flat_map(|r| (0..new_columns).map(move |c| (r, c))) {
        let (y, x) = (
            place(row, rows, new_rows),
            place(column, columns, new_columns),
        );
        for channel in 0..width {
            let taps = (-1..=2).flat_map(|i| (-1..=2).map(move |j| (i, j)));
            let terms = taps.map(|(i, j)| {
                let (sy, sx) = (y.floor() as i64 + i, x.floor() as i64 + j);
                kernel(y - sy as f64) * kernel(x - sx as f64) * at(sy, sx, channel)
            });
            out.push(terms.sum());
        }
    }
    out
}

/// erf, by its series for small |x|, where that converges well, and by its continued fraction otherwise.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let mut term = a;
        let mut sum = a;
        for n in 1..120 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..=60)
            .rev()
            .fold(a, |rest, k| a + f64::from(k) / 2.0 / rest);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_erf_is_right() {
        for (x, expected) in [
            (0.5, 0.520_499_877_813_046_5),
            (2.0, 0.995_322_265_018_952_7),
            (4.0, 0.999_999_984_582_742_1),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14);
            assert!((erf(-x) + expected).abs() < 1e-14);
        }
    }
}
