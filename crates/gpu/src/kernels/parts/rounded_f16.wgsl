// rounded_f16: float32 rows, rounded to float16; beyond its range, the largest float16

fn operand(x: vec4<f32>) -> Operand {
    return Operand(clamp(x, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}
