// attention: softmax(q · kᵀ · scale) · v for every head, without ever holding the N×N scores
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32.
// Constants      ROWS       queries of a workgroup, one an invocation: 64 or 32
//                HEAD_VECS  head_dim / 4, rounded up; at most 64
// Preconditions  Workgroups: x over queries, y over heads, z over the batch. attention.rs checks the shapes, HEAD_VECS
//                and the tile's 16 · KEYS · HEAD_VECS bytes, which are 4,096 for heads of 64, 16,384 for heads of 256.
// Tile           A query and its result stay in the registers of one invocation (2 · HEAD_VECS vectors and KEYS
//                scores), and 16 keys, then their 16 values, pass through workgroup memory. All invocations read the
//                same vector of the tile at a time, which is a broadcast. Device memory is read ⌈N / ROWS⌉ times, and
//                in scalars, since a head starts at a multiple of 4 only where head_dim is one: this is 1/ROWS of the
//                work. Statistics and sums are float32.

struct Params {
    tokens: u32,
    width: u32,
    head_dim: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
fn head_start(group: vec3<u32>, token: u32, which: u32) -> u32 {
    return ((group.z * params.tokens + token) * 3u + which) * params.width + group.y * params.head_dim;
}

// Copies the keys or values from token `first` on. Those beyond the end repeat the last one, and weigh nothing.
fn stage(group: vec3<u32>, first: u32, which: u32, lane: u32) {
    for (var i = lane; i < KEYS * HEAD_VECS; i += ROWS) {
        let token = min(first + i / HEAD_VECS, params.tokens - 1u);
        let offset = 4u * (i % HEAD_VECS);
        tile[i] = load(head_start(group, token, which) + offset, params.head_dim - offset);
    }
}

@compute @workgroup_size(ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * ROWS + lane;
    // Invocations beyond the last query help staging, and store nothing.
    let query_start = head_start(group, min(row, params.tokens - 1u), 0u);
    var query: array<vec4<f32>, HEAD_VECS>;
    var result: array<vec4<f32>, HEAD_VECS>;
    for (var i = 0u; i < HEAD_VECS; i++) {
        query[i] = params.scale * load(query_start + 4u * i, params.head_dim - 4u * i);
    }
    var highest = LOWEST;
    var total = 0.0;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        stage(group, first, 1u, lane);
        workgroupBarrier();
        var scores: array<f32, KEYS>;
        var tile_highest = LOWEST;
        for (var key = 0u; key < KEYS; key++) {
            var score = 0.0;
            for (var i = 0u; i < HEAD_VECS; i++) {
                score += dot(query[i], tile[key * HEAD_VECS + i]);
            }
            scores[key] = score;
            tile_highest = max(tile_highest, select(LOWEST, score, first + key < params.tokens));
        }
        workgroupBarrier();
        stage(group, first, 2u, lane);
        workgroupBarrier();
        // What was summed so far is relative to the maximum so far.
        let new_highest = max(highest, tile_highest);
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
        let start = (group.z * params.tokens + row) * params.width + group.y * params.head_dim;
        for (var i = 0u; i < params.head_dim; i++) {
            y[start + i] = result[i / 4u][i % 4u] / total;
        }
    }
}
