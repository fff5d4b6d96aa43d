// attention_tiled: softmax(q · kᵀ · scale) · v for every head, without materialising the N×N scores, for GPUs
//
// Layout         qkv [batch, tokens, 3, heads, head_dim], y [batch, tokens, heads, head_dim]; row-major float32, y in
//                the format of parts/stored_*.wgsl. context_*.wgsl stores it.
// Constants      DOWN, ACROSS  the workgroup's invocations: 8 · 8 or 4 · 16
//                EACH          keys of an invocation per step: 16 / ACROSS
//                HEAD_VECS     head_dim / 4, rounded up; at most 16
//                QUERY_LOADS   vectors of queries that an invocation copies
//                KEY_LOADS     vectors of keys, and of values, that it copies per step
//                CHUNKS        vectors of a result's row that it computes
//                UNROLLED      vectors of depth per turn of the loop over a head: 4, or 1 if HEAD_VECS % 4 ≠ 0
// Preconditions  Workgroups: x over queries, y over the heads of the batch. forward.rs checks the shapes, derives the
//                constants and lists the workgroup memory, at most 16 KiB.
// Tile           Two matrix products for 4 · DOWN queries and a step of KEYS = EACH · ACROSS keys. Invocation (down,
//                across) computes the scores of four queries, DOWN apart, with its EACH keys: 4 + EACH vectors feed
//                16 · EACH multiply-adds. The weights pass through workgroup memory, and it adds the weighted values of
//                all keys in its CHUNKS vectors of channels: 1 + CHUNKS vectors feed 16 · CHUNKS. Keys and values take
//                turns in one tile; each is loaded to registers while the other is multiplied. Statistics and sums are
//                float32 and relative to the running maximum. What a query adds, and in which order, doesn't depend on
//                DOWN and ACROSS: its totals are kept by key of a step. Everything is in named registers ($i:
//                template.rs).

const THREADS: u32 = DOWN * ACROSS;
const ROWS: u32 = 4u * DOWN;
const KEYS: u32 = EACH * ACROSS;
// Keys and values take turns in one tile.
const TILE_ROWS: u32 = max(HEAD_VECS, KEYS);
// Padded, so that the vectors of a key, which are written together, lie in different banks.
const TILE_COLUMNS: u32 = max(KEYS + 1u, CHUNKS * ACROSS);

// [part][query], padded likewise.
var<workgroup> query_tile: array<array<vec4<f32>, ROWS + 1u>, HEAD_VECS>;
// Keys as [part][key], or values as [key][part].
var<workgroup> tile: array<array<vec4<f32>, TILE_COLUMNS>, TILE_ROWS>;
// [key][down] and [across][down]: weights, and maxima, of four queries.
var<workgroup> weights: array<array<vec4<f32>, DOWN>, KEYS>;
var<workgroup> maxima: array<array<vec4<f32>, DOWN>, ACROSS>;

// Adds four channels to the scores of four queries with a key: one multiply-add each.
fn accumulate(s: vec4<f32>, q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>, k: vec4<f32>) -> vec4<f32> {
    let first = fma(vec4<f32>(q0.x, q1.x, q2.x, q3.x), vec4<f32>(k.x), s);
    let second = fma(vec4<f32>(q0.y, q1.y, q2.y, q3.y), vec4<f32>(k.y), first);
    let third = fma(vec4<f32>(q0.z, q1.z, q2.z, q3.z), vec4<f32>(k.z), second);
    return fma(vec4<f32>(q0.w, q1.w, q2.w, q3.w), vec4<f32>(k.w), third);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.first_head + group.y;
    let last = params.tokens - 1u;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    let first_row = group.x * ROWS;
    let queries = start_of(head, 0u);
    let keys = start_of(head, 1u);
    let values = start_of(head, 2u);
    // What is past the end repeats the last query, or the last vector of the step, which two invocations then write.
#for p in QUERY_LOADS
    let query$p = min(lane + $pu * THREADS, ROWS * HEAD_VECS - 1u);
    query_tile[query$p % HEAD_VECS][query$p / HEAD_VECS] =
        params.scale * load_from(queries, min(first_row + query$p / HEAD_VECS, last), query$p % HEAD_VECS);
#end
#for p in KEY_LOADS
    let load$p = min(lane + $pu * THREADS, KEYS * HEAD_VECS - 1u);
    let token$p = load$p / HEAD_VECS;
    let part$p = load$p % HEAD_VECS;
    var key$p = load_from(keys, min(token$p, last), part$p);
#end
    // Of four queries each.
    var highest = vec4<f32>(LOWEST);
#for j in EACH
    var total$j: vec4<f32>;
#end
    // Of one query each.
#for i in 4
#for c in CHUNKS
    var result$i_$c: vec4<f32>;
#end
#end
    for (var first = 0u; first < params.tokens; first += KEYS) {
#for p in KEY_LOADS
        tile[part$p][token$p] = key$p;
        let value$p = load_from(values, min(first + token$p, last), part$p);
#end
        workgroupBarrier();
#for j in EACH
        var score$j = vec4<f32>();
#end
        for (var turn = 0u; turn < HEAD_VECS / UNROLLED; turn++) {
#for u in UNROLLED
#for i in 4
            let q$u_$i = query_tile[turn * UNROLLED + $uu][down + $iu * DOWN];
#end
#for j in EACH
            let k$u_$j = tile[turn * UNROLLED + $uu][across + $ju * ACROSS];
            score$j = accumulate(score$j, q$u_0, q$u_1, q$u_2, q$u_3, k$u_$j);
#end
#end
        }
        var now = highest;
#for j in EACH
        let exists$j = first + across + $ju * ACROSS < params.tokens;
        now = max(now, select(vec4<f32>(LOWEST), score$j, exists$j));
#end
        maxima[across][down] = now;
        workgroupBarrier();
#for p in KEY_LOADS
        tile[token$p][part$p] = value$p;
        key$p = load_from(keys, min(first + KEYS + token$p, last), part$p);
#end
#for a in ACROSS
        now = max(now, maxima[$a][down]);
#end
        let rescale = exp(highest - now);
        highest = now;
#for j in EACH
        let weight$j = select(vec4<f32>(), exp(score$j - now), exists$j);
        total$j = total$j * rescale + weight$j;
        weights[across + $ju * ACROSS][down] = weight$j;
#end
#for i in 4
#for c in CHUNKS
        result$i_$c *= rescale[$i];
#end
#end
        workgroupBarrier();
        for (var turn = 0u; turn < KEYS / 4u; turn++) {
#for u in 4
            let w$u = weights[4u * turn + $uu][down];
#for c in CHUNKS
            let v$u_$c = tile[4u * turn + $uu][across + $cu * ACROSS];
#for i in 4
            result$i_$c = fma(vec4<f32>(w$u[$i]), v$u_$c, result$i_$c);
#end
#end
#end
        }
        workgroupBarrier();
    }
#for j in EACH
    weights[across + $ju * ACROSS][down] = total$j;
#end
    workgroupBarrier();
    var total = vec4<f32>();
#for j in EACH
#for a in ACROSS
    total += weights[$ju * ACROSS + $au][down];
#end
#end
    let inverse = 1.0 / total;
#for i in 4
    let row$i = first_row + down + $iu * DOWN;
    if row$i < params.tokens {
#for c in CHUNKS
        if across + $cu * ACROSS < HEAD_VECS {
            store(head, row$i, across + $cu * ACROSS, result$i_$c * inverse[$i]);
        }
#end
    }
#end
}
