// linear_staged: the product through workgroup memory, for GPUs
//
// Constants      THREADS  side of the square workgroup: 16 or 8
//                EACH     results per invocation in each direction: 8 or 4
// Tile           The results of an invocation are THREADS apart in both directions, so that adjacent invocations read
//                adjacent vectors of the tiles. The depth is walked DEPTH_VECS vectors at a time. x and weight are
//                both contiguous in depth, so one vec4 of each is one load, and 2 · EACH vectors from workgroup
//                memory feed 4 · EACH² multiply-adds. forward.rs lists the tiles with their memory and FLOP per byte.

const TILE: u32 = EACH * THREADS;
// A depth of 16, or 8 for the tile that would exceed 16 KiB.
const DEPTH_VECS: u32 = select(4u, 2u, TILE > 64u);
// One vector of padding places the depths of a row, which are written together, in different banks.
const STRIDE: u32 = TILE + 1u;
const QUADS: u32 = EACH / 4u;

// [depth, row] and [depth, column]
var<workgroup> x_tile: array<Operand, DEPTH_VECS * STRIDE>;
var<workgroup> weight_tile: array<Operand, DEPTH_VECS * STRIDE>;

// Rows and columns past the end repeat the last one; their results are never stored. Depths past the end are zero in
// both operands.
fn stage(corner: vec2<u32>, depth: u32, lane: u32) {
    let width = (params.inputs + 3u) / 4u;
    for (var i = lane; i < TILE * DEPTH_VECS; i += THREADS * THREADS) {
        let line = i / DEPTH_VECS;
        let part = depth + i % DEPTH_VECS;
        var x_part = Operand();
        var weight_part = Operand();
        if part < width {
            x_part = operand(load_x(min(corner.y + line, params.rows - 1u), part));
            weight_part = load_weight(min(corner.x + line, params.part - 1u) * width + part);
        }
        let place = i % DEPTH_VECS * STRIDE + line;
        x_tile[place] = x_part;
        weight_tile[place] = weight_part;
    }
}

@compute @workgroup_size(THREADS, THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let corner = group.xy * TILE;
    let width = (params.inputs + 3u) / 4u;
    // Each vector holds four results of one row.
    var sums: array<vec4<f32>, EACH * QUADS>;
    for (var depth = 0u; depth < width; depth += DEPTH_VECS) {
        stage(corner, depth, lane);
        workgroupBarrier();
        for (var part = 0u; part < DEPTH_VECS; part++) {
            var weights: array<Operand, EACH>;
            for (var j = 0u; j < EACH; j++) {
                weights[j] = weight_tile[part * STRIDE + thread.x + j * THREADS];
            }
            for (var i = 0u; i < EACH; i++) {
                let v = x_tile[part * STRIDE + thread.y + i * THREADS];
                for (var q = 0u; q < QUADS; q++) {
                    let j = 4u * q;
                    sums[i * QUADS + q] += vec4<f32>(
                        product(v, weights[j]),
                        product(v, weights[j + 1u]),
                        product(v, weights[j + 2u]),
                        product(v, weights[j + 3u]),
                    );
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < EACH * EACH; i++) {
        let row = corner.y + thread.y + i / EACH * THREADS;
        store(sums[i / 4u][i % 4u], row, corner.x + thread.x + i % EACH * THREADS);
    }
}
