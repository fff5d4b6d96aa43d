// linear: y = activation(x · weightᵀ + bias) + residual
//
// Layout         x [rows, inputs], bias [outputs], residual and y [rows, outputs]; row-major float32. A part of the
//                weight [part, inputs] from row `first` on, as weight_*.wgsl reads it: load_weight gives four
//                values of a row, which is padded with zeros to a multiple of four.
// Constants      THREADS     side of the square workgroup: 16 or 8
//                ACTIVATION  that of activation.wgsl
//                RESIDUAL    1 adds the residual; else its binding holds any tensor
// Preconditions  main_vec4 needs inputs to be a multiple of 4; main_scalar takes any. linear.rs checks the shapes,
//                chooses the entry point and covers the part's columns of y with workgroups: x over outputs, y over
//                rows.
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
    // The part's first output and how many it has.
    first: u32,
    part: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> x_vec4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

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
        var x_part = vec4<f32>();
        if source < width {
            x_part = x_vec4[min(corner.y + line, params.rows - 1u) * width + source];
        }
        x_tile[part * STRIDE + line] = x_part;
        stage_weight(corner.x + line, source, part * STRIDE + line);
    }
}

fn stage_scalar(corner: vec2<u32>, depth: u32, lane: u32) {
    for (var i = lane; i < TILE * DEPTH_VECS; i += THREADS * THREADS) {
        let line = i / DEPTH_VECS;
        let part = i % DEPTH_VECS;
        let row = min(corner.y + line, params.rows - 1u);
        var x_part = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            let source = depth + 4u * part + j;
            if source < params.inputs {
                x_part[j] = x[row * params.inputs + source];
            }
        }
        x_tile[part * STRIDE + line] = x_part;
        stage_weight(corner.x + line, depth / 4u + part, part * STRIDE + line);
    }
}

fn stage_weight(column: u32, source: u32, place: u32) {
    let width = (params.inputs + 3u) / 4u;
    var weight_part = vec4<f32>();
    if source < width {
        weight_part = load_weight(min(column, params.part - 1u) * width + source);
    }
    weight_tile[place] = weight_part;
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
            let part_column = corner.x + thread.x + j * THREADS;
            if row < params.rows && part_column < params.part {
                let column = params.first + part_column;
                let index = row * params.outputs + column;
                var value = activate(scaled((*sums)[i][j], column) + bias[column]);
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
