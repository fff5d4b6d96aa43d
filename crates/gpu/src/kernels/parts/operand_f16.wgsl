// operand_f16: x and weights are float16, and their products and sums float32
//
// Range          x is at most 65,504, the largest float16: rounded_f16.wgsl and stored_f16.wgsl see to it.
// Precision      Products of float16 values are exact in float32. A GPU may count operands below 6.1e-5 as zero.

alias Operand = vec4<f16>;

// Adds four depths to the sums of a row and four columns, in the order of the depths.
fn accumulate(sums: vec4<f32>, v: Operand, w0: Operand, w1: Operand, w2: Operand, w3: Operand) -> vec4<f32> {
    let x = vec4<f32>(v);
    let first = fma(vec4<f32>(x.x), vec4<f32>(vec4<f16>(w0.x, w1.x, w2.x, w3.x)), sums);
    let second = fma(vec4<f32>(x.y), vec4<f32>(vec4<f16>(w0.y, w1.y, w2.y, w3.y)), first);
    let third = fma(vec4<f32>(x.z), vec4<f32>(vec4<f16>(w0.z, w1.z, w2.z, w3.z)), second);
    return fma(vec4<f32>(x.w), vec4<f32>(vec4<f16>(w0.w, w1.w, w2.w, w3.w)), third);
}
