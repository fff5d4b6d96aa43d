// linear_packed: the product as dot products of four packed bytes, through workgroup memory, for GPUs
//
// Layout         words: x as quantise.wgsl writes it. bytes_*.wgsl load the weight.
// Constants      THREADS     side of the square workgroup: 16 or 8
//                EACH        results per invocation in each direction: 4
//                DEPTH_VECS  vectors of sixteen bytes per step: 4, or two blocks that share a scale of x
// Precision      Sums of 32 products are exact; they are multiplied by their scale and accumulated in float32.
// Tile           As in staged.wgsl, with four bytes in place of a value: for 32 depths, 4 · EACH vectors from workgroup
//                memory feed 8 · EACH² dot products. forward.rs lists the tiles.

const TILE: u32 = EACH * THREADS;
const STRIDE: u32 = TILE + 1u;
const LINES: u32 = THREADS * THREADS / DEPTH_VECS;
const GROUPS: u32 = LINES / 4u;

@group(0) @binding(1) var<storage, read> words: array<vec4<u32>>;

// [depth, row], and [depth, column % 4, column / 4], so that adjacent invocations read adjacent vectors.
var<workgroup> x_tile: array<vec4<u32>, DEPTH_VECS * STRIDE>;
var<workgroup> weight_tile: array<vec4<u32>, DEPTH_VECS * STRIDE>;
// [block, row]
var<workgroup> scale_tile: array<f32, 2u * TILE>;

fn dot_of_16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

fn dot_of_32(a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>) -> f32 {
    return f32(dot_of_16(a, b) + dot_of_16(c, d));
}

@compute @workgroup_size(THREADS, THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    // Vectors of a row of x, a multiple of DEPTH_VECS.
    let width = (params.inputs + 63u) / 64u * DEPTH_VECS;
    let stride = width + (width + 7u) / 8u;
    let line = lane / DEPTH_VECS;
    let part = lane % DEPTH_VECS;
    let x_place = part * STRIDE + line;
    let weight_place = part * STRIDE + line % 4u * (TILE / 4u) + line / 4u;
    // Rows and columns past the end repeat the last one; their results are never stored.
#for p in EACH * DEPTH_VECS / THREADS
    let x_row$p = min(corner.y + line + $pu * LINES, params.rows - 1u) * stride;
    let weight_row$p = min(corner.x + line + $pu * LINES, params.part - 1u);
#end
    let scale_row = min(corner.y + lane % TILE, params.rows - 1u) * stride + width;
#for i in EACH
    var sums$i: vec4<f32>;
#end
    for (var depth = 0u; depth < width; depth += DEPTH_VECS) {
#for p in EACH * DEPTH_VECS / THREADS
        x_tile[x_place + $pu * LINES] = words[x_row$p + depth + part];
        weight_tile[weight_place + $pu * GROUPS] = load_bytes(weight_row$p, depth + part);
#end
        if lane < 2u * TILE {
            let four = words[scale_row + depth / 8u];
            let two = select(four.xy, four.zw, depth % 8u == 4u);
            scale_tile[lane] = bitcast<f32>(select(two.x, two.y, lane >= TILE));
        }
        workgroupBarrier();
        for (var block = 0u; block < 2u; block++) {
            let x_at = 2u * block * STRIDE + thread.y;
            let weight_at = 2u * block * STRIDE + thread.x;
#for k in 4
            let a$k = weight_tile[weight_at + $ku * (TILE / 4u)];
            let b$k = weight_tile[weight_at + STRIDE + $ku * (TILE / 4u)];
#end
#for i in EACH
            let v$i = x_tile[x_at + $iu * THREADS];
            let w$i = x_tile[x_at + STRIDE + $iu * THREADS];
            let products$i = vec4<f32>(
                dot_of_32(v$i, a0, w$i, b0),
                dot_of_32(v$i, a1, w$i, b1),
                dot_of_32(v$i, a2, w$i, b2),
                dot_of_32(v$i, a3, w$i, b3),
            );
            sums$i = fma(vec4<f32>(scale_tile[block * TILE + thread.y + $iu * THREADS]), products$i, sums$i);
#end
        }
        workgroupBarrier();
    }
    let column = corner.x + 4u * thread.x;
    let biases = bias_of(column);
#for i in EACH
    store_four(sums$i, biases, corner.y + thread.y + $iu * THREADS, column);
#end
}
