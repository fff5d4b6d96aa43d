// scaled_outputs: integer weights with one scale per output. They are multiplied by x and summed; the sum is scaled once.

fn scaled(sum: f32, column: u32) -> f32 {
    return sum * scales[column];
}

fn scaled_four(sums: vec4<f32>, column: u32) -> vec4<f32> {
    return sums * vec4<f32>(scales[column], scales[column + 1u], scales[column + 2u], scales[column + 3u]);
}
