// attention_tile: code shared by the direct attention kernels. 16 queries per workgroup, 64 keys at a time.
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32.
// Preconditions  Workgroups: x over queries, y over the dispatch's heads, z over blocks of 64 channels of a head.
//                Wider heads recompute the scores for each block. forward.rs checks the shapes.
// Tile           Invocation 16 · quad + lane handles the four queries of its quad. It first computes their scores
//                with four keys, 4 · lane and the next three: 8 vectors feed 64 multiply-adds. Then it computes their
//                results in four channels, 4 · lane and the next three, over all keys: 2 vectors feed 16. Weights are
//                exchanged through workgroup memory (4 KiB); keys and values are read directly from storage.

const LANES: u32 = 16u;
const KEYS: u32 = 4u * LANES;
const QUADS: u32 = 4u;

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// [key, quad]: weights of the quad's four queries.
var<workgroup> weights: array<vec4<f32>, KEYS * QUADS>;
// [quad, lane]: partial results of the quad's four queries.
var<workgroup> partial: array<vec4<f32>, QUADS * LANES>;

// Four values for each query of a quad: one per key or one per channel.
struct Four {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn products(query: vec4<f32>, k0: vec4<f32>, k1: vec4<f32>, k2: vec4<f32>, k3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(query, k0), dot(query, k1), dot(query, k2), dot(query, k3));
}

// Scores of four queries with four keys. Keys past the last token score LOWEST.
fn score(head: u32, query: u32, key: u32) -> Four {
    let last = params.tokens - 1u;
    let queries = min(query + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    let keys = min(key + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    var s: Four;
    for (var part = 0u; 4u * part < params.head_dim; part++) {
        let k0 = load(head, keys.x, 1u, part);
        let k1 = load(head, keys.y, 1u, part);
        let k2 = load(head, keys.z, 1u, part);
        let k3 = load(head, keys.w, 1u, part);
        s.a += products(load(head, queries.x, 0u, part), k0, k1, k2, k3);
        s.b += products(load(head, queries.y, 0u, part), k0, k1, k2, k3);
        s.c += products(load(head, queries.z, 0u, part), k0, k1, k2, k3);
        s.d += products(load(head, queries.w, 0u, part), k0, k1, k2, k3);
    }
    let exists = key + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.tokens);
    let lowest = vec4<f32>(LOWEST);
    return Four(
        select(lowest, s.a * params.scale, exists),
        select(lowest, s.b * params.scale, exists),
        select(lowest, s.c * params.scale, exists),
        select(lowest, s.d * params.scale, exists),
    );
}

// The maximum of each query.
fn largest(s: Four) -> vec4<f32> {
    // In the transpose, each component is a query.
    let t = transpose(mat4x4<f32>(s.a, s.b, s.c, s.d));
    return max(max(t[0], t[1]), max(t[2], t[3]));
}

fn sum(s: Four) -> vec4<f32> {
    let t = transpose(mat4x4<f32>(s.a, s.b, s.c, s.d));
    return (t[0] + t[1]) + (t[2] + t[3]);
}

// exp(s − highest), with each query's own maximum.
fn exp_of_difference(s: Four, highest: vec4<f32>) -> Four {
    return Four(exp(s.a - highest.x), exp(s.b - highest.y), exp(s.c - highest.z), exp(s.d - highest.w));
}

// Multiplies each row of f by its component of factor.
fn scale_rows(f: Four, factor: vec4<f32>) -> Four {
    return Four(f.a * factor.x, f.b * factor.y, f.c * factor.z, f.d * factor.w);
}

// Shares the weights of a lane's four keys with the quad's other lanes.
fn share(s: Four, quad: u32, lane: u32) {
    let t = transpose(mat4x4<f32>(s.a, s.b, s.c, s.d));
    let first = 4u * lane * QUADS + quad;
    weights[first] = t[0];
    weights[first + QUADS] = t[1];
    weights[first + 2u * QUADS] = t[2];
    weights[first + 3u * QUADS] = t[3];
}

// Accumulates the weighted values of the keys, starting at `first`.
fn combine(head: u32, first: u32, quad: u32, part: u32, context: Four) -> Four {
    var result = context;
    if 4u * part < params.head_dim {
        for (var key = 0u; key < min(KEYS, params.tokens - first); key++) {
            let value = load(head, first + key, 2u, part);
            let weight = weights[key * QUADS + quad];
            result.a += weight.x * value;
            result.b += weight.y * value;
            result.c += weight.z * value;
            result.d += weight.w * value;
        }
    }
    return result;
}

fn store(head: u32, query: u32, part: u32, context: Four) {
    let rows = mat4x4<f32>(context.a, context.b, context.c, context.d);
    for (var i = 0u; i < 16u; i++) {
        let row = query + i / 4u;
        let channel = 4u * part + i % 4u;
        if row < params.tokens && channel < params.head_dim {
            let token = head / params.heads * params.tokens + row;
            y[token * params.width + head % params.heads * params.head_dim + channel] = rows[i / 4u][i % 4u];
        }
    }
}
