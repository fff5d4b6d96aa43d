// row_softmax: the statistics of a row's softmax, for kernels with one workgroup per row of x: params.width values
// starting at `first`. All invocations must call it, and all get the same result.

// The row's maximum, and the sum of exp((value − maximum) · scale).
fn row_max_and_sum(first: u32, scale: f32, lane: u32) -> vec2<f32> {
    var highest = LOWEST;
    for (var i = lane; i < params.width; i += LANES) {
        highest = max(highest, x[first + i]);
    }
    highest = largest(highest, lane);
    var total = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        total += exp((x[first + i] - highest) * scale);
    }
    return vec2<f32>(highest, sum(total, lane));
}
