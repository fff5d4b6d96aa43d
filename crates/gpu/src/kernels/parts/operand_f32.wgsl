// operand: x and weights are multiplied as float32

alias Operand = vec4<f32>;

fn operand(x: vec4<f32>) -> Operand {
    return x;
}

fn product(a: Operand, b: Operand) -> f32 {
    return dot(a, b);
}
