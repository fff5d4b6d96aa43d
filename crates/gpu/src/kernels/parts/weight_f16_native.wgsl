// weight: float16, four values per vector; each sum is multiplied by the factor by which operand_f16.wgsl divided x

@group(0) @binding(2) var<storage, read> weight: array<vec4<f16>>;

fn load_weight(index: u32) -> vec4<f16> {
    return weight[index];
}

fn scaled(sum: f32, column: u32) -> f32 {
    return 16.0 * sum;
}
