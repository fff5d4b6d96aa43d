// sums: sums over columns and over all elements, in a fixed order
//
// Layout         x [rows, stride], of which the first `columns` columns are summed; y [blocks, columns]; row-major
//                float32.
// Preconditions  column_sums: workgroups x over columns, y over blocks of BLOCK rows. The others: one workgroup per
//                BLOCK · LANES elements, folded into two dimensions. sums.rs repeats either until one row is left.
// Tile           A sum of BLOCK values, then a sum of those sums: the rounding error grows logarithmically with their
//                number.

struct Params {
    rows: u32,
    columns: u32,
    stride: u32,
}

const BLOCK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn column_sums(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.columns {
        return;
    }
    var total = 0.0;
    for (var row = id.y * BLOCK; row < min((id.y + 1u) * BLOCK, params.rows); row++) {
        total += x[row * params.stride + id.x];
    }
    y[id.y * params.columns + id.x] = total;
}

@compute @workgroup_size(LANES)
fn squares(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = group.y * groups.x + group.x;
    if block * BLOCK * LANES >= params.rows {
        return;
    }
    var total = 0.0;
    for (var i = 0u; i < BLOCK; i++) {
        let index = (block * BLOCK + i) * LANES + lane;
        if index < params.rows {
            total += x[index] * x[index];
        }
    }
    total = sum(total, lane);
    if lane == 0u {
        y[block] = total;
    }
}
