// reduce_subgroups: the functions of reduce.wgsl with two barriers each. Subgroups may have any size and any layout
// in the workgroup. The first invocation of a subgroup writes the subgroup's result to its own slot, the others write
// the neutral element, and every subgroup reduces all slots.
//
// Constants      LANES  invocations of the workgroup

const LOWEST: f32 = -3.4028234e38;

var<workgroup> partial: array<f32, LANES>;

// This invocation's index among the subgroup's active invocations, and their number.
fn place() -> vec2<u32> {
    return vec2<u32>(subgroupExclusiveAdd(1u), subgroupAdd(1u));
}

// The sum over all lanes.
fn sum(value: f32, lane: u32) -> f32 {
    let at = place();
    let own = subgroupAdd(value);
    partial[lane] = select(0.0, own, at.x == 0u);
    workgroupBarrier();
    var total = 0.0;
    for (var i = at.x; i < LANES; i += at.y) {
        total += partial[i];
    }
    total = subgroupAdd(total);
    // The next reduction overwrites them.
    workgroupBarrier();
    return total;
}

// The maximum over all lanes.
fn largest(value: f32, lane: u32) -> f32 {
    let at = place();
    let own = subgroupMax(value);
    partial[lane] = select(LOWEST, own, at.x == 0u);
    workgroupBarrier();
    var found = LOWEST;
    for (var i = at.x; i < LANES; i += at.y) {
        found = max(found, partial[i]);
    }
    found = subgroupMax(found);
    workgroupBarrier();
    return found;
}
