// weight_scalar: float32 rows of any length, without padding; zero past the end

@group(0) @binding(2) var<storage, read> weight: array<f32>;

fn load_weight(index: u32) -> vec4<f32> {
    let vectors = (params.columns + 3u) / 4u;
    let column = 4u * (index % vectors);
    let first = index / vectors * params.columns + column;
    var value = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if column + i < params.columns {
            value[i] = weight[first + i];
        }
    }
    return value;
}
