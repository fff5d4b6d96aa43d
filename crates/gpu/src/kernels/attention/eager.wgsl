// eager_attention: attention that also writes its probabilities, with the tile of tile.wgsl
//
// Layout         probs [part, tokens, tokens]: the probabilities of the dispatch's heads; row-major float32.
// Constants      DROPS  1 weighs values by the probabilities after dropout; the written ones are from before dropout
// Tile           Keys are walked twice, first for each query's maximum and sum. That costs a third more arithmetic
//                than reading scores back, but probabilities are written once and never read.

@group(0) @binding(3) var<storage, read_write> probs: array<f32>;

// The probabilities of four queries with four keys after dropout.
fn dropped(head: u32, query: u32, key: u32, s: Four) -> Four {
    if DROPS == 0u {
        return s;
    }
    let first = (head * params.tokens + query) * params.tokens + key + vec4<u32>(0u, 1u, 2u, 3u);
    return Four(
        s.a * factors(first),
        s.b * factors(first + params.tokens),
        s.c * factors(first + 2u * params.tokens),
        s.d * factors(first + 3u * params.tokens),
    );
}

fn factors(i: vec4<u32>) -> vec4<f32> {
    return dropout_factors(i, params.keys, params.threshold, params.survivor_scale);
}

fn store_probabilities(head: u32, query: u32, key: u32, s: Four) {
    let rows = mat4x4<f32>(s.a, s.b, s.c, s.d);
    for (var i = 0u; i < 16u; i++) {
        let row = query + i / 4u;
        let column = key + i % 4u;
        if row < params.tokens && column < params.tokens {
            probs[(head * params.tokens + row) * params.tokens + column] = rows[i / 4u][i % 4u];
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = params.first_head + group.y;
    let quad = index / LANES;
    let lane = index % LANES;
    let query = 4u * (group.x * QUADS + quad);
    let part = group.z * LANES + lane;
    // First over the lane's own keys, then over all keys.
    var highest = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    for (var first = 0u; first < params.tokens; first += KEYS) {
        let s = score(head, query, first + 4u * lane);
        let now = max(highest, largest(s));
        let exponentials = exp_of_difference(s, now);
        // A lane without keys only has LOWEST, whose difference from itself is 0, so exp would be 1.
        let exists = vec4<bool>(first + 4u * lane < params.tokens);
        total = total * exp(highest - now) + select(vec4<f32>(), sum(exponentials), exists);
        highest = now;
    }
    partial[index] = highest;
    workgroupBarrier();
    var now = highest;
    for (var other = 0u; other < LANES; other++) {
        now = max(now, partial[quad * LANES + other]);
    }
    workgroupBarrier();
    partial[index] = total * exp(highest - now);
    highest = now;
    workgroupBarrier();
    total = vec4<f32>();
    for (var other = 0u; other < LANES; other++) {
        total += partial[quad * LANES + other];
    }
    var context: Four;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        let key = first + 4u * lane;
        let s = scale_rows(exp_of_difference(score(head, query, key), highest), 1.0 / total);
        workgroupBarrier();
        share(dropped(head, query, key, s), quad, lane);
        workgroupBarrier();
        if group.z == 0u {
            store_probabilities(group.y, query, key, s);
        }
        context = combine(head, first, quad, part, context);
    }
    store(head, query, part, context);
}
