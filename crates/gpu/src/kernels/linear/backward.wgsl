// linear_backward: y = left · right with one or both operands in depth order: grad · weight and gradᵀ · x
//
// Layout         left: grad, with element (row, depth) at offset + row · row_stride + depth · depth_stride; right
//                [depth, columns], loaded four columns at a time by parts/weight_*.wgsl; y [rows, columns]; row-major
//                float32.
// Constants      TRANSPOSED  1 if rows of left are contiguous, 0 if depths are; contiguous values are loaded by
//                            adjacent invocations
//                ACCUMULATE  1 adds to y, for a right operand in several parts
// Preconditions  Workgroups: x over columns, y over rows, 64×64 results each; backward.rs checks the shapes.
// Tile           256 invocations of 4×4 results. 16 depths at a time pass through 8 KiB of workgroup memory, one
//                vector of each operand per invocation; two vectors from there feed 16 multiply-adds. A result is one
//                invocation's sum: no atomics, and the same bits on every run.

struct Params {
    rows: u32,
    columns: u32,
    depth: u32,
    offset: u32,
    row_stride: u32,
    depth_stride: u32,
}

const QUADS: u32 = 16u;
const DEPTHS: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// [depth, quad], where a quad is four rows of left or four columns of right.
var<workgroup> left: array<vec4<f32>, DEPTHS * QUADS>;
var<workgroup> right: array<vec4<f32>, DEPTHS * QUADS>;

// Zero past the end.
fn load_left(row: u32, depth: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if depth < params.depth {
        for (var i = 0u; i < 4u; i++) {
            if row + i < params.rows {
                value[i] = grad[params.offset + (row + i) * params.row_stride + depth * params.depth_stride];
            }
        }
    }
    return value;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let across = lane % 16u;
    let down = lane / 16u;
    // The part of left that the invocation loads.
    let left_quad = select(down, across, TRANSPOSED == 1u);
    let left_depth = select(across, down, TRANSPOSED == 1u);
    let vectors = (params.columns + 3u) / 4u;
    let vector = group.x * QUADS + across;
    var a = vec4<f32>();
    var b = vec4<f32>();
    var c = vec4<f32>();
    var d = vec4<f32>();
    for (var first = 0u; first < params.depth; first += DEPTHS) {
        left[left_depth * QUADS + left_quad] = load_left(4u * (group.y * QUADS + left_quad), first + left_depth);
        var value = vec4<f32>();
        if first + down < params.depth && vector < vectors {
            value = load_weight((first + down) * vectors + vector);
        }
        right[lane] = value;
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTHS; depth++) {
            let l = left[depth * QUADS + down];
            let r = right[depth * QUADS + across];
            a += l.x * r;
            b += l.y * r;
            c += l.z * r;
            d += l.w * r;
        }
        workgroupBarrier();
    }
    let sums = array<vec4<f32>, 4>(a, b, c, d);
    for (var i = 0u; i < 16u; i++) {
        let row = 4u * (group.y * QUADS + down) + i / 4u;
        let column = 4u * vector + i % 4u;
        if row < params.rows && column < params.columns {
            let index = row * params.columns + column;
            let sum = sums[i / 4u][i % 4u];
            if ACCUMULATE == 1u {
                y[index] += sum;
            } else {
                y[index] = sum;
            }
        }
    }
}
