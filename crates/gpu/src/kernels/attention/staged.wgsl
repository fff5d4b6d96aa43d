// attention_staged: softmax(q · kᵀ · scale) · v for every head, without materialising the N×N scores, for GPUs
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32, y in
//                the format of parts/stored_*.wgsl.
// Constants      ROWS       queries per workgroup, one per invocation: 64 or 32
//                HEAD_VECS  head_dim / 4, rounded up; at most 64
// Preconditions  Workgroups: x over queries, y over the heads of the batch. forward.rs checks the shapes and
//                HEAD_VECS.
// Tile           One invocation holds a query and its result in registers (2 · HEAD_VECS vectors and KEYS scores). 16
//                keys, then their 16 values, pass through workgroup memory: 16 · KEYS · HEAD_VECS bytes, 4,096 for
//                heads of 64, 16,384 for heads of 256. All invocations read the same vector at a time, which is a
//                broadcast. Device memory is read ⌈N / ROWS⌉ times. Statistics and sums are float32 and relative to
//                the running maximum.

@group(0) @binding(2) var<storage, read_write> y: array<Stored>;

const KEYS: u32 = 16u;

var<workgroup> tile: array<vec4<f32>, KEYS * HEAD_VECS>;

// Copies keys or values, starting at token `first`. Tokens past the end repeat the last one and get zero weight.
fn stage(head: u32, first: u32, which: u32, lane: u32) {
    for (var i = lane; i < KEYS * HEAD_VECS; i += ROWS) {
        let token = min(first + i / HEAD_VECS, params.tokens - 1u);
        tile[i] = load(head, token, which, i % HEAD_VECS);
    }
}

// The query's scores with the staged keys. Keys past the last token score LOWEST.
fn score_tile(query: ptr<function, array<vec4<f32>, HEAD_VECS>>, first: u32) -> array<f32, KEYS> {
    var scores: array<f32, KEYS>;
    for (var key = 0u; key < KEYS; key++) {
        var score = 0.0;
        for (var i = 0u; i < HEAD_VECS; i++) {
            score += dot((*query)[i], tile[key * HEAD_VECS + i]);
        }
        scores[key] = select(LOWEST, score, first + key < params.tokens);
    }
    return scores;
}

// The maximum of `highest` and a tile's scores.
fn highest_of(scores: ptr<function, array<f32, KEYS>>, highest: f32) -> f32 {
    var found = highest;
    for (var key = 0u; key < KEYS; key++) {
        found = max(found, (*scores)[key]);
    }
    return found;
}

// The scaled query of a row. Rows past the end repeat the last one.
fn load_query(head: u32, row: u32) -> array<vec4<f32>, HEAD_VECS> {
    let token = min(row, params.tokens - 1u);
    var query: array<vec4<f32>, HEAD_VECS>;
    for (var i = 0u; i < HEAD_VECS; i++) {
        query[i] = params.scale * load(head, token, 0u, i);
    }
    return query;
}

// The offset of the head's result for a row.
fn result_start(head: u32, row: u32) -> u32 {
    let token = head / params.heads * params.tokens + row;
    return token * params.width + head % params.heads * params.head_dim;
}

@compute @workgroup_size(ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.first_head + group.y;
    let row = group.x * ROWS + lane;
    // Invocations past the last query help with staging and store nothing.
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
            y[start + i] = stored(result[i / 4u][i % 4u] / total);
        }
    }
}
