// row_softmax: what the softmax of a row is made of, where each workgroup has a row of x, params.width values from `first` on.
// Every invocation calls it, and all get the same result.

// The row's largest value, and the sum of exp((value − largest) · scale).
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
