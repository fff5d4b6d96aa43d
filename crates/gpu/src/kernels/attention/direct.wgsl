// attention_direct: softmax(q · kᵀ · scale) · v for every head, without materialising the N×N scores, with the tile
// of tile.wgsl. It serves software adapters, which place arrays in memory unless they are unrolled, and heads too
// wide for the staged kernel. Statistics and sums are relative to the running maximum.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = params.first_head + group.y;
    let quad = index / LANES;
    let lane = index % LANES;
    let query = 4u * (group.x * QUADS + quad);
    let part = group.z * LANES + lane;
    var highest = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    var context: Four;
    for (var first = 0u; first < params.tokens; first += KEYS) {
        var s = score(head, query, first + 4u * lane);
        partial[index] = largest(s);
        workgroupBarrier();
        var now = highest;
        for (var other = 0u; other < LANES; other++) {
            now = max(now, partial[quad * LANES + other]);
        }
        let rescale = exp(highest - now);
        highest = now;
        s = exp_of_difference(s, highest);
        workgroupBarrier();
        partial[index] = sum(s);
        share(s, quad, lane);
        workgroupBarrier();
        total *= rescale;
        for (var other = 0u; other < LANES; other++) {
            total += partial[quad * LANES + other];
        }
        context = combine(head, first, quad, part, scale_rows(context, rescale));
        workgroupBarrier();
    }
    store(head, query, part, scale_rows(context, 1.0 / total));
}
