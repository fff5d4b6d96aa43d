// weight: float32, four values per vector

@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

fn load_weight(index: u32) -> vec4<f32> {
    return weight[index];
}

fn scaled(sum: f32, column: u32) -> f32 {
    return sum;
}
