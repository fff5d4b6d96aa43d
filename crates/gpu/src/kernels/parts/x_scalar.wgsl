// x: float32 rows of any length, zero past the end

@group(0) @binding(1) var<storage, read> x: array<f32>;

fn load_x(row: u32, part: u32) -> vec4<f32> {
    var value = vec4<f32>();
    let first = row * params.inputs;
    for (var i = 0u; i < 4u; i++) {
        let depth = 4u * part + i;
        if depth < params.inputs {
            value[i] = x[first + depth];
        }
    }
    return value;
}
