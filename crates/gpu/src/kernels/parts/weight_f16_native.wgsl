// weight_f16_native: float16, four values per vector

@group(0) @binding(2) var<storage, read> weight: array<vec4<f16>>;

fn load_weight(index: u32) -> vec4<f16> {
    return weight[index];
}

fn scaled(sum: f32, column: u32) -> f32 {
    return sum;
}

fn scaled_four(sums: vec4<f32>, column: u32) -> vec4<f32> {
    return sums;
}
