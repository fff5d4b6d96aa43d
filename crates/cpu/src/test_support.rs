//! What the kernels' tests share.

use vit_msn_tensor::Dtype;
pub use vit_msn_tensor::testing::{assert_close, values};

use crate::PackedLinear;
use crate::runtime::parallel::threads_for;

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

/// Inits threads that help with jobs until the process of this test ends.
pub fn start_workers(count: usize) {
    let wanted = threads_for(usize::MAX) + count;
    for _ in 0..count {
        std::thread::spawn(crate::work);
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

/// What a linear layer of `k` inputs gives, in float64.
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
