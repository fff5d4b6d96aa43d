// dropout: bit-identical to the generator of crates/cpu/src/dropout.rs

// The factors of elements i: 0 or `scale`.
fn dropout_factors(i: vec4<u32>, keys: vec2<u32>, threshold: u32, scale: f32) -> vec4<f32> {
    let bits = hash(hash(i ^ vec4<u32>(keys.x)) ^ vec4<u32>(keys.y));
    return select(vec4<f32>(scale), vec4<f32>(), bits < vec4<u32>(threshold));
}

// lowbias32
fn hash(value: vec4<u32>) -> vec4<u32> {
    var v = value;
    v ^= v >> vec4<u32>(16u);
    v *= 0x7feb352du;
    v ^= v >> vec4<u32>(15u);
    v *= 0x846ca68bu;
    return v ^ (v >> vec4<u32>(16u));
}
