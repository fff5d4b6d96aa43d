// columns: copies a range of columns of rows

struct Params {
    rows: u32,
    columns: u32,
    from_width: u32,
    from_first: u32,
    to_width: u32,
    to_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LINE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y + group.z * WIDEST;
    let column = group.x * LINE + lane;
    if row >= params.rows || column >= params.columns {
        return;
    }
    y[row * params.to_width + params.to_first + column] =
        x[row * params.from_width + params.from_first + column];
}
