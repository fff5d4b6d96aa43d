//! What the kernels' tests share.

use vit_msn_tensor::Dtype;

use crate::PackedLinear;
use crate::parallel::threads_for;

/// `count` values in −1..1 that look random and are the same on every run.
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

/// A packed weight and what it holds: the weight and the bias, as rounded to `dtype`.
pub fn packed(n: usize, k: usize, dtype: Dtype, seed: u64) -> (PackedLinear, Vec<f32>, Vec<f32>) {
    let round = |v: Vec<f32>| v.into_iter().map(|v| dtype.round(v)).collect::<Vec<_>>();
    let (weight, bias) = (round(values(n * k, seed)), round(values(n, seed + 1)));
    let mut w = PackedLinear::new(n, k, dtype, true).unwrap();
    w.set_rows(0, Dtype::F32, &Dtype::F32.encode(&weight).unwrap())
        .unwrap();
    w.set_bias(0, Dtype::F32, &Dtype::F32.encode(&bias).unwrap())
        .unwrap();
    (w, weight, bias)
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

/// Starts threads that help with jobs until the process of this test ends.
pub fn start_workers(count: usize) {
    let wanted = threads_for(usize::MAX) + count;
    for _ in 0..count {
        std::thread::spawn(|| crate::work());
    }
    while threads_for(usize::MAX) < wanted {
        std::thread::yield_now();
    }
}

/// What `run` gives alone, checked to be the same bit for bit with one, two and seven workers.
pub fn same_with_workers(run: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let alone = run();
    for more in [1, 1, 5] {
        start_workers(more);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&run()), bits(&alone));
    }
    alone
}
