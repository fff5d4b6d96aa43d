// linear_staged: the product through workgroup memory, for GPUs
//
// Constants      THREADS     side of the square workgroup: 16 or 8
//                EACH        results per invocation in each direction: 8 or 4
//                DEPTH_VECS  vectors of depth per step: 4 or 2. THREADS² is a multiple of 4 · DEPTH_VECS
//                RAGGED      1 if the depth is not a multiple of DEPTH_VECS vectors
// Tile           An invocation has EACH rows, THREADS apart, and in each of them EACH / 4 times four adjacent columns,
//                4 · THREADS apart. Sums and operands are named registers ($i, $q: template.rs). x and weight are both
//                contiguous in depth, so one vec4 of each is one load, and 2 · EACH vectors from workgroup memory feed
//                4 · EACH² multiply-adds. forward.rs lists the tiles with their memory and FLOP per byte.

const TILE: u32 = EACH * THREADS;
// Lines that the workgroup loads at a time.
const LINES: u32 = THREADS * THREADS / DEPTH_VECS;
// One vector of padding places the depths of a line, which are written together, in different banks.
const STRIDE: u32 = THREADS + 1u;

// [row / THREADS][depth, row % THREADS], and [column / (4 · THREADS) · 4 + column % 4][depth, column / 4 % THREADS].
// Adjacent invocations read adjacent vectors, and a depth's indices differ in the constant part only, so that what
// compilers add to keep a variable index in range is added once.
var<workgroup> x_tile: array<array<Operand, DEPTH_VECS * STRIDE>, EACH>;
var<workgroup> weight_tile: array<array<Operand, DEPTH_VECS * STRIDE>, EACH>;

@compute @workgroup_size(THREADS, THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    let width = (params.inputs + 3u) / 4u;
    let line = lane / DEPTH_VECS;
    let part = lane % DEPTH_VECS;
    // Rows and columns past the end repeat the last one; their results are never stored.
#for p in EACH * DEPTH_VECS / THREADS
    let line$p = line + $pu * LINES;
    let x_row$p = min(corner.y + line$p, params.rows - 1u);
    let weight_row$p = min(corner.x + line$p, params.part - 1u) * width;
    let x_place$p = part * STRIDE + line$p % THREADS;
    let weight_group$p = line$p / (4u * THREADS) * 4u + line$p % 4u;
    let weight_place$p = part * STRIDE + line$p / 4u % THREADS;
#end
#for i in EACH
#for q in EACH / 4
    var sums$i_$q: vec4<f32>;
#end
#end
    for (var depth = 0u; depth < width; depth += DEPTH_VECS) {
        let at = depth + part;
        // Depths past the end repeat the last one, and x counts as zero there.
        let place = select(at, min(at, width - 1u), RAGGED == 1u);
#for p in EACH * DEPTH_VECS / THREADS
        var x$p = operand(load_x(x_row$p, place));
        let weight$p = load_weight(weight_row$p + place);
#end
#for p in EACH * DEPTH_VECS / THREADS
        if RAGGED == 1u && at >= width {
            x$p = Operand();
        }
        x_tile[line$p / THREADS][x_place$p] = x$p;
        weight_tile[weight_group$p][weight_place$p] = weight$p;
#end
        workgroupBarrier();
        for (var d = 0u; d < DEPTH_VECS; d++) {
            let x_at = d * STRIDE + thread.y;
            let weight_at = d * STRIDE + thread.x;
#for q in EACH / 4
#for k in 4
            let w$q_$k = weight_tile[4 * $q + $k][weight_at];
#end
#end
#for i in EACH
            let v$i = x_tile[$i][x_at];
#for q in EACH / 4
            sums$i_$q = accumulate(sums$i_$q, v$i, w$q_0, w$q_1, w$q_2, w$q_3);
#end
#end
        }
        workgroupBarrier();
    }
#for q in EACH / 4
    let column$q = corner.x + 4u * (thread.x + $qu * THREADS);
    let biases$q = bias_of(column$q);
#for i in EACH
    store_four(sums$i_$q, biases$q, corner.y + thread.y + $iu * THREADS, column$q);
#end
#end
}
