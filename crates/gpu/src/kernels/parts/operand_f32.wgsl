// operand_f32: x and weights are multiplied as float32

alias Operand = vec4<f32>;

fn operand(x: vec4<f32>) -> Operand {
    return x;
}

// Adds four depths to the sums of a row and four columns. One multiply-add each, in the order of the depths: compilers
// don't have to find out that dot products may be fused with the sum.
fn accumulate(sums: vec4<f32>, v: Operand, w0: Operand, w1: Operand, w2: Operand, w3: Operand) -> vec4<f32> {
    let first = fma(vec4<f32>(v.x), vec4<f32>(w0.x, w1.x, w2.x, w3.x), sums);
    let second = fma(vec4<f32>(v.y), vec4<f32>(w0.y, w1.y, w2.y, w3.y), first);
    let third = fma(vec4<f32>(v.z), vec4<f32>(w0.z, w1.z, w2.z, w3.z), second);
    return fma(vec4<f32>(v.w), vec4<f32>(w0.w, w1.w, w2.w, w3.w), third);
}
