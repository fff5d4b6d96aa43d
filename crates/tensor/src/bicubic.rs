//! Bicubic interpolation, for position embeddings of images of another size.

/// The cubic kernel's parameter, as in PyTorch and OpenCV (Keys, 1981, uses −0.5).
const A: f32 = -0.75;

/// The four source indices and weights of output `index` when an axis of `len` samples is resampled to `new_len`.
/// Corners are unaligned and edges repeated, as in `torch.nn.functional.interpolate(mode="bicubic", size=…)`.
pub fn bicubic_taps(index: usize, len: usize, new_len: usize) -> [(usize, f32); 4] {
    // In float32, as in PyTorch, so that the weights are the same.
    let place = len as f32 / new_len as f32 * (index as f32 + 0.5) - 0.5;
    let first = place.floor();
    let t = place - first;
    let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
    std::array::from_fn(|tap| {
        let wanted = first as i64 + tap as i64 - 1;
        (wanted.clamp(0, len as i64 - 1) as usize, weights[tap])
    })
}

/// The kernel within one sample of its centre.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel one to two samples from its centre.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_length_copies_and_edges_repeat() {
        for index in 0..14 {
            let taps = bicubic_taps(index, 14, 14);
            assert_eq!(taps.map(|tap| tap.1), [0.0, 1.0, 0.0, 0.0]);
            assert_eq!(taps[1].0, index);
        }
        assert_eq!(bicubic_taps(0, 3, 6).map(|tap| tap.0), [0, 0, 0, 1]);
        assert_eq!(bicubic_taps(5, 3, 6).map(|tap| tap.0), [1, 2, 2, 2]);
    }

    #[test]
    fn weights_sum_to_one() {
        for (index, len, new_len) in [(3, 5, 7), (0, 1, 9), (12, 40, 13)] {
            let sum: f32 = bicubic_taps(index, len, new_len)
                .iter()
                .map(|tap| tap.1)
                .sum();
            assert!((sum - 1.0).abs() < 1e-6);
        }
    }
}
