// prototypes: L2-normalises rows, and computes the gradient of that
//
// Layout         x [rows, width], y [rows, width], or with transposed = 1 [width, rows]; row-major float32. by_row
//                works in place.
// Preconditions  One workgroup per row, folded into two dimensions; prototypes.rs checks the shapes.
// Tile           LANES invocations walk a row together, reading adjacent values.

struct Params {
    rows: u32,
    width: u32,
    // The length of the output rows.
    length: f32,
    transposed: u32,
}

// Shorter rows are divided by this, as in torch's F.normalize.
const SHORTEST: f32 = 1e-12;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn normalise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var squares = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        squares += x[first + i] * x[first + i];
    }
    let factor = params.length / max(sqrt(sum(squares, lane)), SHORTEST);
    for (var i = lane; i < params.width; i += LANES) {
        let place = select(first + i, i * params.rows + row, params.transposed == 1u);
        y[place] = x[first + i] * factor;
    }
}

// With g, the gradient of x / |x|, in y: (g − x · (x · g) / |x|²) / |x|. For a row divided by the constant, nothing
// is subtracted.
@compute @workgroup_size(LANES)
fn by_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var squares = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        squares += x[first + i] * x[first + i];
    }
    let length = sqrt(sum(squares, lane));
    let factor = 1.0 / max(length, SHORTEST);
    var along = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        along += (x[first + i] * factor) * y[first + i];
    }
    along = select(0.0, sum(along, lane), length > SHORTEST);
    for (var i = lane; i < params.width; i += LANES) {
        y[first + i] = (y[first + i] - (x[first + i] * factor) * along) * factor;
    }
}
