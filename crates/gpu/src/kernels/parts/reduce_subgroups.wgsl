// reduce_subgroups: reduce.wgsl's functions with two barriers each, by subgroups of any size and wherever they lie in the
// workgroup. A subgroup's first invocation leaves the subgroup's result in its own place, the others leave what changes
// nothing, and every subgroup reduces all places.
//
// Constants      LANES  those of the workgroup

const LOWEST: f32 = -3.4028234e38;

var<workgroup> partial: array<f32, LANES>;

// Among the invocations that are there: which one this is, and how many there are.
fn place() -> vec2<u32> {
    return vec2<u32>(subgroupExclusiveAdd(1u), subgroupAdd(1u));
}

// The sum of every lane's value.
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

// The largest of every lane's value.
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
