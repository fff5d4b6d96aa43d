// x: float32 rows, rounded to float16

fn operand(x: vec4<f32>) -> Operand {
    return Operand(0.0625 * x);
}
