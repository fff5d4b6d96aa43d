// attention_backward: the gradients of attention with respect to queries, keys and values. With S = scale · Q·Kᵀ, P =
// softmax(S) and O = P·V: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = scale · P ∘ (dP − D) with D = rowsum(dO ∘ O) = rowsum(P ∘ dP),
// dQ = dS·K and dK = dSᵀ·Q (Dao et al., FlashAttention, 2022, appendix B).
//
// Layout         qkv and y [batch, tokens, 3, heads, head_dim], grad [batch, tokens, heads, head_dim]; saved: the
//                op's result, laid out like grad, or for eager attention its probabilities [part, tokens, tokens] of
//                the dispatch's heads; statistics [heads of the batch, tokens]: (the largest score, 1 / the sum of
//                exponentials, D, 0). Row-major float32.
// Constants      EAGER    1 reads the probabilities, 0 recomputes them
//                DROPS    1 if dropout weighted the values: M ∘ P replaces P in O, and dP is M ∘ (dO·Vᵀ)
//                BY_KEYS  1 computes the gradients of keys and values, 0 those of queries
// Preconditions  Workgroups: x over rows (queries, or keys if BY_KEYS), y over the dispatch's heads, z over blocks of
//                64 channels of a head (one block for the statistics). backward.rs checks the shapes.
// Tile           As in tile.wgsl: 16 rows per workgroup, multiplied with 64 others at a time. Invocation 16 · quad +
//                lane handles the four rows of its quad. It first computes P and dS with four others, then the
//                gradients in four channels over all others. Weights are exchanged through 8 KiB of workgroup memory.
//                Each gradient is one invocation's sum: no N×N buffer, no atomics.

const LANES: u32 = 16u;
const OTHERS: u32 = 4u * LANES;
const QUADS: u32 = 4u;

// The tensors that load_any can load.
const QUERY: u32 = 0u;
const KEY: u32 = 1u;
const VALUE: u32 = 2u;
const GRAD: u32 = 3u;

@group(0) @binding(3) var<storage, read> saved: array<f32>;
@group(0) @binding(4) var<storage, read> statistics: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> new_statistics: array<vec4<f32>>;

// [other, quad]: gradients of the scores of the quad's four rows; also the scratch memory of reductions.
var<workgroup> d_scores: array<vec4<f32>, OTHERS * QUADS>;
var<workgroup> weights: array<vec4<f32>, OTHERS * QUADS>;

fn load_any(head: u32, token: u32, kind: u32, part: u32) -> vec4<f32> {
    if kind == GRAD {
        return load_grad(head, token, part);
    }
    return load(head, token, kind, part);
}

// Tokens past the end repeat the last one.
fn four_from(token: u32) -> vec4<u32> {
    return min(token + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.tokens - 1u));
}

fn dots(v: vec4<f32>, o0: vec4<f32>, o1: vec4<f32>, o2: vec4<f32>, o3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(v, o0), dot(v, o1), dot(v, o2), dot(v, o3));
}

// Dot products of four rows with four others; one column per row.
fn products(head: u32, rows: vec4<u32>, row_kind: u32, others: vec4<u32>, other_kind: u32) -> mat4x4<f32> {
    var a: vec4<f32>;
    var b: vec4<f32>;
    var c: vec4<f32>;
    var d: vec4<f32>;
    for (var part = 0u; 4u * part < params.head_dim; part++) {
        let o0 = load_any(head, others.x, other_kind, part);
        let o1 = load_any(head, others.y, other_kind, part);
        let o2 = load_any(head, others.z, other_kind, part);
        let o3 = load_any(head, others.w, other_kind, part);
        a += dots(load_any(head, rows.x, row_kind, part), o0, o1, o2, o3);
        b += dots(load_any(head, rows.y, row_kind, part), o0, o1, o2, o3);
        c += dots(load_any(head, rows.z, row_kind, part), o0, o1, o2, o3);
        d += dots(load_any(head, rows.w, row_kind, part), o0, o1, o2, o3);
    }
    return mat4x4<f32>(a, b, c, d);
}

// The saved probabilities of one query with four keys.
fn saved_row(head: u32, query: u32, keys: vec4<u32>) -> vec4<f32> {
    let first = ((head - params.first_head) * params.tokens + query) * params.tokens;
    return vec4<f32>(saved[first + keys.x], saved[first + keys.y], saved[first + keys.z], saved[first + keys.w]);
}

fn saved_probabilities(head: u32, queries: vec4<u32>, keys: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        saved_row(head, queries.x, keys),
        saved_row(head, queries.y, keys),
        saved_row(head, queries.z, keys),
        saved_row(head, queries.w, keys),
    );
}

// The statistics of each element's query; one column per row.
struct Known {
    highest: mat4x4<f32>,
    share: mat4x4<f32>,
    total: mat4x4<f32>,
}

fn known_of(head: u32, rows: vec4<u32>, others: vec4<u32>) -> Known {
    let queries = select(rows, others, BY_KEYS == 1u);
    let first = head * params.tokens;
    // The columns are highest, share and total.
    let s = transpose(mat4x4<f32>(
        statistics[first + queries.x],
        statistics[first + queries.y],
        statistics[first + queries.z],
        statistics[first + queries.w],
    ));
    if BY_KEYS == 1u {
        return Known(
            mat4x4<f32>(s[0], s[0], s[0], s[0]),
            mat4x4<f32>(s[1], s[1], s[1], s[1]),
            mat4x4<f32>(s[2], s[2], s[2], s[2]),
        );
    }
    return Known(spread(s[0]), spread(s[1]), spread(s[2]));
}

fn spread(v: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(vec4<f32>(v.x), vec4<f32>(v.y), vec4<f32>(v.z), vec4<f32>(v.w));
}

fn probabilities(head: u32, rows: vec4<u32>, others: vec4<u32>, known: Known) -> mat4x4<f32> {
    if EAGER == 1u {
        if BY_KEYS == 1u {
            return transpose(saved_probabilities(head, others, rows));
        }
        return saved_probabilities(head, rows, others);
    }
    let scores = products(head, rows, select(QUERY, KEY, BY_KEYS == 1u), others, select(KEY, QUERY, BY_KEYS == 1u));
    return mat4x4<f32>(
        exp(scores[0] * params.scale - known.highest[0]) * known.share[0],
        exp(scores[1] * params.scale - known.highest[1]) * known.share[1],
        exp(scores[2] * params.scale - known.highest[2]) * known.share[2],
        exp(scores[3] * params.scale - known.highest[3]) * known.share[3],
    );
}

// The factor by which dropout multiplied each element's probability.
fn dropout_mask(head: u32, rows: vec4<u32>, others: vec4<u32>) -> mat4x4<f32> {
    let first = head * params.tokens;
    if BY_KEYS == 1u {
        let queries = (first + others) * params.tokens;
        return mat4x4<f32>(
            factors(queries + rows.x),
            factors(queries + rows.y),
            factors(queries + rows.z),
            factors(queries + rows.w),
        );
    }
    let queries = (first + rows) * params.tokens;
    return mat4x4<f32>(
        factors(queries.x + others),
        factors(queries.y + others),
        factors(queries.z + others),
        factors(queries.w + others),
    );
}

fn factors(i: vec4<u32>) -> vec4<f32> {
    return dropout_factors(i, params.keys, params.threshold, params.survivor_scale);
}

// The element-wise product.
fn masked(m: mat4x4<f32>, mask: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(m[0] * mask[0], m[1] * mask[1], m[2] * mask[2], m[3] * mask[3]);
}

// The slot through which a lane shares its weights, four rows by four others, with the quad's other lanes.
fn first_place(quad: u32, lane: u32) -> u32 {
    return 4u * lane * QUADS + quad;
}

fn store(head: u32, row: u32, kind: u32, part: u32, sums: mat4x4<f32>) {
    for (var i = 0u; i < 16u; i++) {
        let token = row + i / 4u;
        let channel = 4u * part + i % 4u;
        if token < params.tokens && channel < params.head_dim {
            let line = (head / params.heads * params.tokens + token) * 3u + kind;
            y[line * params.width + head % params.heads * params.head_dim + channel] = sums[i / 4u][i % 4u];
        }
    }
}

@compute @workgroup_size(64)
fn gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = params.first_head + group.y;
    let quad = index / LANES;
    let lane = index % LANES;
    let row = 4u * (group.x * QUADS + quad);
    let rows = four_from(row);
    let part = group.z * LANES + lane;
    let place = first_place(quad, lane);
    // With respect to queries, or to keys and values.
    var by_first: mat4x4<f32>;
    var by_values: mat4x4<f32>;
    for (var first = 0u; first < params.tokens; first += OTHERS) {
        let others = four_from(first + 4u * lane);
        let known = known_of(head, rows, others);
        let p = probabilities(head, rows, others, known);
        var used = p;
        var dp = products(head, rows, select(GRAD, VALUE, BY_KEYS == 1u), others, select(VALUE, GRAD, BY_KEYS == 1u));
        if DROPS == 1u {
            let mask = dropout_mask(head, rows, others);
            used = masked(p, mask);
            dp = masked(dp, mask);
        }
        let ds = transpose(mat4x4<f32>(
            params.scale * p[0] * (dp[0] - known.total[0]),
            params.scale * p[1] * (dp[1] - known.total[1]),
            params.scale * p[2] * (dp[2] - known.total[2]),
            params.scale * p[3] * (dp[3] - known.total[3]),
        ));
        // All reads of the previous round are done.
        workgroupBarrier();
        d_scores[place] = ds[0];
        d_scores[place + QUADS] = ds[1];
        d_scores[place + 2u * QUADS] = ds[2];
        d_scores[place + 3u * QUADS] = ds[3];
        if BY_KEYS == 1u {
            let shares = transpose(used);
            weights[place] = shares[0];
            weights[place + QUADS] = shares[1];
            weights[place + 2u * QUADS] = shares[2];
            weights[place + 3u * QUADS] = shares[3];
        }
        workgroupBarrier();
        if 4u * part < params.head_dim {
            for (var other = 0u; other < min(OTHERS, params.tokens - first); other++) {
                let d_score = d_scores[other * QUADS + quad];
                let v = load(head, first + other, select(KEY, QUERY, BY_KEYS == 1u), part);
                by_first += mat4x4<f32>(d_score.x * v, d_score.y * v, d_score.z * v, d_score.w * v);
                if BY_KEYS == 1u {
                    let weight = weights[other * QUADS + quad];
                    let g = load_grad(head, first + other, part);
                    by_values += mat4x4<f32>(weight.x * g, weight.y * g, weight.z * g, weight.w * g);
                }
            }
        }
    }
    store(head, row, select(QUERY, KEY, BY_KEYS == 1u), part, by_first);
    if BY_KEYS == 1u {
        store(head, row, VALUE, part, by_values);
    }
}

// D of a query, from its result.
fn total_of(head: u32, query: u32) -> f32 {
    let row = head / params.heads * params.tokens + query;
    let first = row * params.width + head % params.heads * params.head_dim;
    var total = 0.0;
    for (var part = 0u; 4u * part < params.head_dim; part++) {
        let g = load_grad(head, query, part);
        for (var i = 0u; i < min(4u, params.head_dim - 4u * part); i++) {
            total += g[i] * saved[first + 4u * part + i];
        }
    }
    return total;
}

// The maximum and the sum of each column.
fn largest(m: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(m);
    return max(max(t[0], t[1]), max(t[2], t[3]));
}

fn sum(m: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(m);
    return (t[0] + t[1]) + (t[2] + t[3]);
}

// The sum of a vector over the quad's lanes.
fn sum_of_lanes(value: vec4<f32>, index: u32) -> vec4<f32> {
    workgroupBarrier();
    d_scores[index] = value;
    workgroupBarrier();
    var total: vec4<f32>;
    for (var other = 0u; other < LANES; other++) {
        total += d_scores[index / LANES * LANES + other];
    }
    return total;
}

@compute @workgroup_size(64)
fn statistics_of_queries(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = params.first_head + group.y;
    let lane = index % LANES;
    let row = 4u * (group.x * QUADS + index / LANES);
    let rows = four_from(row);
    // First over the lane's own keys, then over all keys. `total` sums the exponentials or, given probabilities, D.
    var highest = vec4<f32>(LOWEST);
    var total: vec4<f32>;
    for (var first = 0u; first < params.tokens; first += OTHERS) {
        let key = first + 4u * lane;
        let keys = four_from(key);
        let exists = key + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.tokens);
        let none = vec4<f32>();
        if EAGER == 1u {
            let p = saved_probabilities(head, rows, keys);
            var dp = products(head, rows, GRAD, keys, VALUE);
            if DROPS == 1u {
                dp = masked(dp, dropout_mask(head, rows, keys));
            }
            total += sum(mat4x4<f32>(
                select(none, p[0] * dp[0], exists),
                select(none, p[1] * dp[1], exists),
                select(none, p[2] * dp[2], exists),
                select(none, p[3] * dp[3], exists),
            ));
        } else {
            let scores = products(head, rows, QUERY, keys, KEY);
            let lowest = vec4<f32>(LOWEST);
            let s = mat4x4<f32>(
                select(lowest, scores[0] * params.scale, exists),
                select(lowest, scores[1] * params.scale, exists),
                select(lowest, scores[2] * params.scale, exists),
                select(lowest, scores[3] * params.scale, exists),
            );
            let now = max(highest, largest(s));
            let exponentials = mat4x4<f32>(
                select(none, exp(s[0] - now.x), exists),
                select(none, exp(s[1] - now.y), exists),
                select(none, exp(s[2] - now.z), exists),
                select(none, exp(s[3] - now.w), exists),
            );
            total = total * exp(highest - now) + sum(exponentials);
            highest = now;
        }
    }
    var share: vec4<f32>;
    if EAGER == 1u {
        total = sum_of_lanes(total, index);
    } else {
        d_scores[index] = highest;
        workgroupBarrier();
        var now = highest;
        for (var other = 0u; other < LANES; other++) {
            now = max(now, d_scores[index / LANES * LANES + other]);
        }
        share = 1.0 / sum_of_lanes(total * exp(highest - now), index);
        highest = now;
        total = vec4<f32>(
            total_of(head, rows.x),
            total_of(head, rows.y),
            total_of(head, rows.z),
            total_of(head, rows.w),
        );
    }
    if lane < 4u && row + lane < params.tokens {
        new_statistics[head * params.tokens + row + lane] = vec4<f32>(highest[lane], share[lane], total[lane], 0.0);
    }
}
