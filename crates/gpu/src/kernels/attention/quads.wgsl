// attention_quads: softmax(q · kᵀ · scale) · v for every head, without materialising the N×N scores, with four
// invocations per query, for GPUs with subgroups
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32, y in
//                the format of parts/stored_*.wgsl.
// Constants      ROWS       queries per workgroup: 64, 32 or 16
//                HEAD_VECS  head_dim / 4, rounded up; at most 64
// Preconditions  Workgroups: x over queries, y over the heads of the batch. forward.rs checks the shapes and
//                HEAD_VECS. Subgroups may have any size: a quad is four invocations of a subgroup, and the smallest
//                subgroup has four.
// Tile           Each invocation of a quad holds every fourth vector of a query and its result in registers: 2 · EACH
//                vectors and KEYS / 4 weights. Keys, then their values, pass through workgroup memory, 16 · KEYS ·
//                HEAD_VECS bytes: 8,192 for heads of 64, 8,192 for heads of 256. A quad reads four adjacent vectors
//                at a time, the same for all quads. Each invocation receives one of four keys' scores: three
//                exchanges for four scores, and each exponential is computed once. Statistics are float32 and
//                relative to the running maximum.

@group(0) @binding(2) var<storage, read_write> y: array<Stored>;

const EACH: u32 = (HEAD_VECS + 3u) / 4u;
// The most that fit into 16 KiB along with the number of quads, up to 32.
const KEYS: u32 = select(select(8u, 16u, HEAD_VECS < 64u), 32u, HEAD_VECS < 32u);

var<workgroup> tile: array<vec4<f32>, KEYS * HEAD_VECS>;
var<workgroup> quads: atomic<u32>;

// Copies keys or values, starting at token `first`. Tokens past the end repeat the last one and get zero weight.
fn stage(head: u32, first: u32, which: u32, index: u32) {
    for (var i = index; i < KEYS * HEAD_VECS; i += 4u * ROWS) {
        let token = min(first + i / HEAD_VECS, params.tokens - 1u);
        tile[i] = load(head, token, which, i % HEAD_VECS);
    }
}

// The lane's vectors of a row's scaled query, zero past the head. Rows past the end repeat the last one.
fn load_query(head: u32, row: u32, lane: u32) -> array<vec4<f32>, EACH> {
    let token = min(row, params.tokens - 1u);
    var query: array<vec4<f32>, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let part = 4u * i + lane;
        if part < HEAD_VECS {
            query[i] = params.scale * load(head, token, 0u, part);
        }
    }
    return query;
}

// The lane's i-th vector of a staged key or value. Past the head it is the last one, which is multiplied by zero or
// not stored.
fn staged(key: u32, i: u32, lane: u32) -> vec4<f32> {
    return tile[key * HEAD_VECS + min(4u * i + lane, HEAD_VECS - 1u)];
}

// The contribution of the lane's vectors to a key's score.
fn share_of_score(query: ptr<function, array<vec4<f32>, EACH>>, key: u32, lane: u32) -> f32 {
    var score = 0.0;
    for (var i = 0u; i < EACH; i++) {
        score += dot((*query)[i], staged(key, i, lane));
    }
    return score;
}

// The score of key + lane. The quad computes the scores of four keys together, starting at `key`; each exchange
// passes on the half that the other invocation will own.
fn own_score(query: ptr<function, array<vec4<f32>, EACH>>, key: u32, lane: u32) -> f32 {
    let s0 = share_of_score(query, key, lane);
    let s1 = share_of_score(query, key + 1u, lane);
    let s2 = share_of_score(query, key + 2u, lane);
    let s3 = share_of_score(query, key + 3u, lane);
    let right = (lane & 1u) == 1u;
    let a = select(s0, s1, right) + quadSwapX(select(s1, s0, right));
    let b = select(s2, s3, right) + quadSwapX(select(s3, s2, right));
    let lower = lane >= 2u;
    return select(a, b, lower) + quadSwapY(select(b, a, lower));
}

// Accumulates the weighted values of four keys; each lane holds one weight.
fn add_values(result: ptr<function, array<vec4<f32>, EACH>>, weight: f32, key: u32, lane: u32) {
    let w0 = quadBroadcast(weight, 0u);
    let w1 = quadBroadcast(weight, 1u);
    let w2 = quadBroadcast(weight, 2u);
    let w3 = quadBroadcast(weight, 3u);
    for (var i = 0u; i < EACH; i++) {
        (*result)[i] += w0 * staged(key, i, lane) + w1 * staged(key + 1u, i, lane)
            + w2 * staged(key + 2u, i, lane) + w3 * staged(key + 3u, i, lane);
    }
}

// The quad's index in the workgroup. WGSL doesn't define which invocations form a quad, so quads draw numbers.
fn draw_number(index: u32, lane: u32) -> u32 {
    if index == 0u {
        atomicStore(&quads, 0u);
    }
    workgroupBarrier();
    var drawn = 0u;
    if lane == 0u {
        drawn = atomicAdd(&quads, 1u);
    }
    return quadBroadcast(drawn, 0u);
}

fn store(head: u32, row: u32, part: u32, values: vec4<f32>) {
    let token = head / params.heads * params.tokens + row;
    let start = token * params.width + head % params.heads * params.head_dim;
    for (var i = 0u; i < 4u; i++) {
        if 4u * part + i < params.head_dim {
            y[start + 4u * part + i] = stored(values[i]);
        }
    }
}

@compute @workgroup_size(4u * ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
) {
    let head = params.first_head + group.y;
    let lane = invocation % 4u;
    let row = group.x * ROWS + draw_number(index, lane);
    // Quads past the last query help with staging and store nothing.
    var query = load_query(head, row, lane);
    var result: array<vec4<f32>, EACH>;
    var highest = LOWEST;
    // Over the lane's own keys.
    var total = 0.0;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        stage(head, first, 1u, index);
        workgroupBarrier();
        var weights: array<f32, KEYS / 4u>;
        var now = highest;
        for (var k = 0u; k < KEYS / 4u; k++) {
            let score = own_score(&query, 4u * k, lane);
            weights[k] = select(LOWEST, score, first + 4u * k + lane < params.tokens);
            now = max(now, weights[k]);
        }
        now = max(now, quadSwapX(now));
        now = max(now, quadSwapY(now));
        workgroupBarrier();
        stage(head, first, 2u, index);
        workgroupBarrier();
        let rescale = exp(highest - now);
        highest = now;
        total *= rescale;
        for (var i = 0u; i < EACH; i++) {
            result[i] *= rescale;
        }
        for (var k = 0u; k < KEYS / 4u; k++) {
            let exists = first + 4u * k + lane < params.tokens;
            let weight = select(0.0, exp(weights[k] - highest), exists);
            total += weight;
            add_values(&result, weight, 4u * k, lane);
        }
        workgroupBarrier();
    }
    total += quadSwapX(total);
    total += quadSwapY(total);
    if row < params.tokens {
        for (var i = 0u; i < EACH; i++) {
            store(head, row, 4u * i + lane, result[i] / total);
        }
    }
}
