// linear_packed: the product as dot products of four packed bytes, through workgroup memory, for GPUs
//
// Constants      THREADS  side of the square workgroup: 16 or 8
//                EACH     results per invocation in each direction: 4
// Precision      x is quantised while it is staged, in blocks of 32 values of a row whose largest magnitude maps to
//                127. Sums of 32 products are exact; they are multiplied by their scale and accumulated in float32.
// Tile           As in staged.wgsl, with DEPTH values per step and 16 bytes per load: 2 loads of each line's bytes
//                feed 8 dot products with each of EACH weights. forward.rs lists the tiles.

const TILE: u32 = EACH * THREADS;
// The values that share a scale, in loads of four and of sixteen.
const QUARTERS: u32 = 8u;
const HALVES: u32 = 2u;
const STRIDE: u32 = TILE + 1u;

// [half, row] and [half, column]
var<workgroup> x_tile: array<vec4<u32>, HALVES * STRIDE>;
var<workgroup> weight_tile: array<vec4<u32>, HALVES * STRIDE>;
var<workgroup> x_scales: array<f32, TILE>;

// Rows and columns past the end repeat the last one; their results are never stored. Depths past the end are zero in
// both operands.
fn stage_x(line: u32, row: u32, depth: u32, width: u32) {
    var values: array<vec4<f32>, QUARTERS>;
    var sizes = vec4<f32>();
    for (var i = 0u; i < QUARTERS; i++) {
        if depth + i < width {
            values[i] = load_x(row, depth + i);
            sizes = max(sizes, abs(values[i]));
        }
    }
    let size = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    // Magnitudes this small may count as zero and have no finite inverse.
    let steps = select(0.0, 127.0 / size, size > 1e-30);
    x_scales[line] = size / 127.0;
    for (var half = 0u; half < HALVES; half++) {
        var words: vec4<u32>;
        for (var i = 0u; i < 4u; i++) {
            words[i] = pack4xI8(vec4<i32>(round(steps * values[4u * half + i])));
        }
        x_tile[half * STRIDE + line] = words;
    }
}

fn stage_weight(line: u32, row: u32, depth: u32, width: u32) {
    for (var half = 0u; half < HALVES; half++) {
        var words: vec4<u32>;
        for (var i = 0u; i < 4u; i++) {
            let part = depth + 4u * half + i;
            if part < width {
                words[i] = weight[row * width + part];
            }
        }
        weight_tile[half * STRIDE + line] = words;
    }
}

fn stage(corner: vec2<u32>, depth: u32, width: u32, lane: u32) {
    for (var i = lane; i < 2u * TILE; i += THREADS * THREADS) {
        if i < TILE {
            stage_x(i, min(corner.y + i, params.rows - 1u), depth, width);
        } else {
            stage_weight(i - TILE, min(corner.x + i - TILE, params.part - 1u), depth, width);
        }
    }
}

fn dot_of_16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

@compute @workgroup_size(THREADS, THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    let width = (params.inputs + 3u) / 4u;
    var sums: array<f32, EACH * EACH>;
    for (var depth = 0u; depth < width; depth += QUARTERS) {
        stage(corner, depth, width, lane);
        workgroupBarrier();
        var first: array<vec4<u32>, EACH>;
        var second: array<vec4<u32>, EACH>;
        for (var j = 0u; j < EACH; j++) {
            let column = thread.x + j * THREADS;
            first[j] = weight_tile[column];
            second[j] = weight_tile[STRIDE + column];
        }
        for (var i = 0u; i < EACH; i++) {
            let row = thread.y + i * THREADS;
            let scale = x_scales[row];
            let a = x_tile[row];
            let b = x_tile[STRIDE + row];
            for (var j = 0u; j < EACH; j++) {
                sums[i * EACH + j] += scale * f32(dot_of_16(a, first[j]) + dot_of_16(b, second[j]));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < EACH * EACH; i++) {
        let row = corner.y + thread.y + i / EACH * THREADS;
        store(sums[i], row, corner.x + thread.x + i % EACH * THREADS);
    }
}
