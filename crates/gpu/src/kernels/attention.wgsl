// attention: softmax(q · kᵀ · scale) · v for every head, without ever holding the N×N scores
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32.
// Preconditions  Workgroups: x over queries, y over the heads of the batch. attention.rs checks the shapes and HEAD_VECS.
// Tile           That of attention_tile.wgsl: 2 · HEAD_VECS vectors and KEYS scores in registers. Device memory is read
//                ⌈N / ROWS⌉ times, and in scalars, since a head starts at a multiple of 4 only where head_dim is one:
//                this is 1/ROWS of the work. Statistics and sums are float32, and relative to the maximum so far.

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.first_head + group.y;
    let row = group.x * ROWS + lane;
    // Invocations beyond the last query help staging, and store nothing.
    var query = load_query(head, row);
    var result: array<vec4<f32>, HEAD_VECS>;
    var highest = LOWEST;
    var total = 0.0;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        stage(head, first, 1u, lane);
        workgroupBarrier();
        var scores = score_tile(&query, first);
        workgroupBarrier();
        stage(head, first, 2u, lane);
        workgroupBarrier();
        let new_highest = highest_of(&scores, highest);
        let rescale = exp(highest - new_highest);
        highest = new_highest;
        total *= rescale;
        for (var i = 0u; i < HEAD_VECS; i++) {
            result[i] *= rescale;
        }
        for (var key = 0u; key < KEYS; key++) {
            let weight = select(0.0, exp(scores[key] - highest), first + key < params.tokens);
            total += weight;
            for (var i = 0u; i < HEAD_VECS; i++) {
                result[i] += weight * tile[key * HEAD_VECS + i];
            }
        }
        workgroupBarrier();
    }
    if row < params.tokens {
        let start = result_start(head, row);
        for (var i = 0u; i < params.head_dim; i++) {
            y[start + i] = result[i / 4u][i % 4u] / total;
        }
    }
}
