// linear: y = activation(x · weightᵀ + bias) + residual
//
// Layout         x [rows, inputs], weight [outputs, inputs] as checkpoints store it, bias [outputs],
//                residual and y [rows, outputs]; all row-major float32.
// Constants      THREADS     side of the square workgroup: 16 or 8
//                ACTIVATION  0 identity, 1 gelu, 2 relu, 3 silu, 4 gelu by tanh, 5 x·σ(1.702x)
//                RESIDUAL    1 adds the residual; else its binding holds any tensor
// Preconditions  main_vec4 needs inputs to be a multiple of 4; main_scalar takes any. linear.rs checks the shapes,
//                chooses the entry point and covers y with workgroups: x over outputs, y over rows.
// Tile           Each invocation owns 4×4 results, THREADS apart in both directions, so that neighbours read
//                neighbouring vectors of the tiles. Depth is walked 16 values at a time: x and weight are both
//                contiguous in depth, so one vec4 of each is one load, and 8 vec4 from workgroup memory feed
//                64 multiply-adds. Memory is 2 · 4 · (4·THREADS + 1) · 16 bytes: 8,320 at THREADS 16, 4,224 at 8,
//                of the 16,384 that every adapter has; 256 or 64 invocations. A tile of 64×64 makes 8 FLOP for each
//                byte read from the device's memory, 32×32 makes 4.

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> x_vec4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> weight_vec4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

const TILE: u32 = 4u * THREADS;
const DEPTH_VECS: u32 = 4u;
// One vector of padding puts the four depths of a row, which are written together, into different banks.
const STRIDE: u32 = TILE + 1u;

// [depth, row] and [depth, column]
var<workgroup> x_tile: array<vec4<f32>, DEPTH_VECS * STRIDE>;
var<workgroup> weight_tile: array<vec4<f32>, DEPTH_VECS * STRIDE>;

// Rows and columns beyond the end repeat the last one: their results are never stored. Depths beyond the end are
// zero in both operands.

fn stage_vec4(corner: vec2<u32>, depth: u32, lane: u32) {
    let width = params.inputs / 4u;
    for (var i = lane; i < TILE * DEPTH_VECS; i += THREADS * THREADS) {
        let line = i / DEPTH_VECS;
        let part = i % DEPTH_VECS;
        let source = depth / 4u + part;
        let column = min(corner.x + line, params.outputs - 1u);
        let row = min(corner.y + line, params.rows - 1u);
        var x_part = vec4<f32>();
        var weight_part = vec4<f32>();
        if source < width {
            x_part = x_vec4[row * width + source];
            weight_part = weight_vec4[column * width + source];
        }
        x_tile[part * STRIDE + line] = x_part;
        weight_tile[part * STRIDE + line] = weight_part;
    }
}

fn stage_scalar(corner: vec2<u32>, depth: u32, lane: u32) {
    for (var i = lane; i < TILE * DEPTH_VECS; i += THREADS * THREADS) {
        let line = i / DEPTH_VECS;
        let part = i % DEPTH_VECS;
        let column = min(corner.x + line, params.outputs - 1u);
        let row = min(corner.y + line, params.rows - 1u);
        var x_part = vec4<f32>();
        var weight_part = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            let source = depth + 4u * part + j;
            if source < params.inputs {
                x_part[j] = x[row * params.inputs + source];
                weight_part[j] = weight[column * params.inputs + source];
            }
        }
        x_tile[part * STRIDE + line] = x_part;
        weight_tile[part * STRIDE + line] = weight_part;
    }
}

// Adds the products of the staged depths to the 4×4 results; a vector of them is one row.
fn multiply(sums: ptr<function, array<vec4<f32>, 4>>, thread: vec2<u32>) {
    for (var part = 0u; part < DEPTH_VECS; part++) {
        let columns = part * STRIDE + thread.x;
        let w0 = weight_tile[columns];
        let w1 = weight_tile[columns + THREADS];
        let w2 = weight_tile[columns + 2u * THREADS];
        let w3 = weight_tile[columns + 3u * THREADS];
        for (var i = 0u; i < 4u; i++) {
            let v = x_tile[part * STRIDE + thread.y + i * THREADS];
            (*sums)[i] += vec4<f32>(dot(v, w0), dot(v, w1), dot(v, w2), dot(v, w3));
        }
    }
}

fn store(sums: ptr<function, array<vec4<f32>, 4>>, corner: vec2<u32>, thread: vec2<u32>) {
    for (var i = 0u; i < 4u; i++) {
        let row = corner.y + thread.y + i * THREADS;
        for (var j = 0u; j < 4u; j++) {
            let column = corner.x + thread.x + j * THREADS;
            if row < params.rows && column < params.outputs {
                let index = row * params.outputs + column;
                var value = activate((*sums)[i][j] + bias[column]);
                if RESIDUAL == 1u {
                    value += residual[index];
                }
                y[index] = value;
            }
        }
    }
}

@compute @workgroup_size(THREADS, THREADS)
fn main_vec4(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    var sums: array<vec4<f32>, 4>;
    for (var depth = 0u; depth < params.inputs; depth += 4u * DEPTH_VECS) {
        stage_vec4(corner, depth, lane);
        workgroupBarrier();
        multiply(&sums, thread.xy);
        workgroupBarrier();
    }
    store(&sums, corner, thread.xy);
}

@compute @workgroup_size(THREADS, THREADS)
fn main_scalar(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    var sums: array<vec4<f32>, 4>;
    for (var depth = 0u; depth < params.inputs; depth += 4u * DEPTH_VECS) {
        stage_scalar(corner, depth, lane);
        workgroupBarrier();
        multiply(&sums, thread.xy);
        workgroupBarrier();
    }
    store(&sums, corner, thread.xy);
}

fn activate(v: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return gelu(v); }
        case 2u: { return max(v, 0.0); }
        case 3u: { return times_sigmoid(v, v); }
        // The tanh form is v·σ(2u), since ½(1 + tanh u) = σ(2u): 1.5957691 is 2·√(2/π).
        case 4u: { return times_sigmoid(v, 1.5957691 * v * (1.0 + 0.044715 * v * v)); }
        case 5u: { return times_sigmoid(v, 1.702 * v); }
        default: { return v; }
    }
}

// v·Φ(v) = max(v, 0) − |v|·Φ(−|v|) with Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.3a)); r is a minimax polynomial of
// ½·erfcx(a/√2) on a ∈ [0, 14], error 2e-8, the one that the CPU's gelu uses. Beyond 14 the tail is 0.
fn gelu(v: f32) -> f32 {
    let size = min(abs(v), 14.0);
    let t = 1.0 / (1.0 + 0.3 * size);
    var r = 3.7548766e-2;
    r = r * t - 1.6537375e-1;
    r = r * t + 2.213504e-1;
    r = r * t - 6.877566e-2;
    r = r * t + 1.3764614e-1;
    r = r * t + 9.657086e-2;
    r = r * t + 1.2148725e-1;
    r = r * t + 1.1954163e-1;
    r = r * t + 4.3772447e-6;
    return max(v, 0.0) - size * r * exp(-0.5 * size * size);
}

// v·σ(u) for u of v's sign; e^−|u| never overflows.
fn times_sigmoid(v: f32, u: f32) -> f32 {
    let decay = exp(-abs(u));
    return v * select(1.0, decay, u < 0.0) / (1.0 + decay);
}
