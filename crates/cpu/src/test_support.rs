//! Helpers shared by the kernels' tests.

use vit_msn_tensor::Dtype;
pub use vit_msn_tensor::testing::{assert_close, values};

use crate::PackedLinear;
use crate::runtime::parallel::threads_for;

/// A packed layer, and its weight and bias, rounded to `dtype`.
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

/// Starts threads that help with jobs until this test's process ends.
pub fn start_workers(count: usize) {
    let wanted = threads_for(usize::MAX) + count;
    for _ in 0..count {
        std::thread::spawn(crate::work);
    }
    while threads_for(usize::MAX) < wanted {
        std::thread::yield_now();
    }
}

/// The result of `run` on one thread; asserts that one, two and seven workers give a bit-identical result.
pub fn same_with_workers(run: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let alone = run();
    for more in [1, 1, 5] {
        start_workers(more);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&run()), bits(&alone));
    }
    alone
}

/// The output of a linear layer with `k` inputs, in float64.
pub fn naive_product(x: &[f32], weight: &[f32], bias: &[f32], k: usize) -> Vec<f64> {
    x.chunks_exact(k)
        .flat_map(|row| {
            weight
                .chunks_exact(k)
                .zip(bias)
                .map(move |(weights, &bias)| {
                    let products = row
                        .iter()
                        .zip(weights)
                        .map(|(&a, &b)| f64::from(a) * f64::from(b));
                    f64::from(bias) + products.sum::<f64>()
                })
        })
        .collect()
}
