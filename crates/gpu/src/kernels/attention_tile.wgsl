// attention_tile: what the kernels of attention share. A query and its result stay in the registers of one invocation,
// and 16 keys or values pass through workgroup memory: 16 · KEYS · HEAD_VECS bytes, 4,096 for heads of 64, 16,384 for
// heads of 256. All invocations read the same vector of the tile at a time, which is a broadcast.
//
// Constants      ROWS       queries of a workgroup, one an invocation: 64 or 32
//                HEAD_VECS  head_dim / 4, rounded up; at most 64

struct Params {
    tokens: u32,
    width: u32,
    head_dim: u32,
    scale: f32,
    heads: u32,
    // The first head of the dispatch, counted over the whole batch.
    first_head: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;

const KEYS: u32 = 16u;
const LOWEST: f32 = -3.4028234e38;

var<workgroup> tile: array<vec4<f32>, KEYS * HEAD_VECS>;

// Four values from `first` on, of a head's `count` values still there; zeros beyond.
fn load(first: u32, count: u32) -> vec4<f32> {
    var value = vec4<f32>(qkv[first], 0.0, 0.0, 0.0);
    if count > 1u {
        value.y = qkv[first + 1u];
    }
    if count > 2u {
        value.z = qkv[first + 2u];
    }
    if count > 3u {
        value.w = qkv[first + 3u];
    }
    return value;
}

// Where the head's query (which = 0), key (1) or value (2) of a token starts.
fn head_start(head: u32, token: u32, which: u32) -> u32 {
    let row = (head / params.heads * params.tokens + token) * 3u + which;
    return row * params.width + head % params.heads * params.head_dim;
}

// Copies the keys or values from token `first` on. Those beyond the end repeat the last one, and weigh nothing.
fn stage(head: u32, first: u32, which: u32, lane: u32) {
    for (var i = lane; i < KEYS * HEAD_VECS; i += ROWS) {
        let token = min(first + i / HEAD_VECS, params.tokens - 1u);
        let offset = 4u * (i % HEAD_VECS);
        tile[i] = load(head_start(head, token, which) + offset, params.head_dim - offset);
    }
}

// The query's scores with the staged keys; those beyond the last token get the lowest number.
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

// The largest of a tile's scores and `highest`.
fn highest_of(scores: ptr<function, array<f32, KEYS>>, highest: f32) -> f32 {
    var found = highest;
    for (var key = 0u; key < KEYS; key++) {
        found = max(found, (*scores)[key]);
    }
    return found;
}

// The query of a row, scaled; rows beyond the last repeat it.
fn load_query(head: u32, row: u32) -> array<vec4<f32>, HEAD_VECS> {
    let start = head_start(head, min(row, params.tokens - 1u), 0u);
    var query: array<vec4<f32>, HEAD_VECS>;
    for (var i = 0u; i < HEAD_VECS; i++) {
        query[i] = params.scale * load(start + 4u * i, params.head_dim - 4u * i);
    }
    return query;
}

// Where the head's result of a row starts.
fn result_start(head: u32, row: u32) -> u32 {
    let token = head / params.heads * params.tokens + row;
    return token * params.width + head % params.heads * params.head_dim;
}
