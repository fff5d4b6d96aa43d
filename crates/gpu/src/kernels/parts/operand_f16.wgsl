// operand: x and weights meet as float16; products of four values are summed in float16, and their sums in float32
//
// Range          x is divided by 16, so that products of four stay finite up to 2^20, and x itself as well. Beyond that results
//                are infinite or no numbers, as float16 models' are in PyTorch beyond 65,504.

alias Operand = vec4<f16>;

fn product(a: Operand, b: Operand) -> f32 {
    return f32(dot(a, b));
}
