// reduce: sums and maxima over the invocations of a workgroup, for kernels with one workgroup per row. All
// invocations must call these functions, and all get the same result.
//
// Constants      LANES  a power of two: 64, or 8 on software adapters, where barriers are expensive

const LOWEST: f32 = -3.4028234e38;

var<workgroup> partial: array<f32, LANES>;

// The sum over all lanes.
fn sum(value: f32, lane: u32) -> f32 {
    partial[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            partial[lane] += partial[lane + half];
        }
    }
    workgroupBarrier();
    let total = partial[0];
    // The next reduction overwrites it.
    workgroupBarrier();
    return total;
}

// The maximum over all lanes.
fn largest(value: f32, lane: u32) -> f32 {
    partial[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            partial[lane] = max(partial[lane], partial[lane + half]);
        }
    }
    workgroupBarrier();
    let found = partial[0];
    workgroupBarrier();
    return found;
}
