// eager_attention: attention that also writes its probabilities
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim], probs [part, tokens,
//                tokens]: those of the dispatch's heads; row-major float32.
// Preconditions  Workgroups: x over queries, y over the dispatch's heads; attention.rs checks the shapes and HEAD_VECS.
// Tile           That of attention_tile.wgsl. Keys are walked twice, first for each row's maximum and sum: a third more
//                arithmetic than reading scores back would take, and probabilities are written once and never read.

@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> probs: array<f32>;

@compute @workgroup_size(ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.first_head + group.y;
    let row = group.x * ROWS + lane;
    // Invocations beyond the last query help staging, and store nothing.
    var query = load_query(head, row);
    var highest = LOWEST;
    var total = 0.0;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        stage(head, first, 1u, lane);
        workgroupBarrier();
        var scores = score_tile(&query, first);
        let new_highest = highest_of(&scores, highest);
        total *= exp(highest - new_highest);
        highest = new_highest;
        for (var key = 0u; key < KEYS; key++) {
            total += select(0.0, exp(scores[key] - highest), first + key < params.tokens);
        }
        workgroupBarrier();
    }
    var result: array<vec4<f32>, HEAD_VECS>;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        stage(head, first, 1u, lane);
        workgroupBarrier();
        var scores = score_tile(&query, first);
        workgroupBarrier();
        stage(head, first, 2u, lane);
        workgroupBarrier();
        for (var key = 0u; key < KEYS; key++) {
            let token = first + key;
            let probability = select(0.0, exp(scores[key] - highest) / total, token < params.tokens);
            for (var i = 0u; i < HEAD_VECS; i++) {
                result[i] += probability * tile[key * HEAD_VECS + i];
            }
            if row < params.tokens && token < params.tokens {
                probs[(group.y * params.tokens + row) * params.tokens + token] = probability;
            }
        }
        workgroupBarrier();
    }
    if row < params.tokens {
        let start = result_start(head, row);
        for (var i = 0u; i < params.head_dim; i++) {
            y[start + i] = result[i / 4u][i % 4u];
        }
    }
}
