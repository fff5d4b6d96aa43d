// operand: x and weights are multiplied as float16. Products of four values are summed in float16, and those sums in
// float32.
//
// Range          x is divided by 16, so that sums of four products, and x itself, stay finite up to 2^20. Beyond that
//                results are infinite or NaN, as those of float16 models in PyTorch are beyond 65,504.

alias Operand = vec4<f16>;

fn product(a: Operand, b: Operand) -> f32 {
    return f32(dot(a, b));
}
