// x_scalar: float32 rows of any length, zero past the end

@group(0) @binding(1) var<storage, read> x: array<f32>;

fn load_one(row: u32, depth: u32) -> f32 {
    if depth < params.inputs {
        return x[row * params.inputs + depth];
    }
    return 0.0;
}

fn load_x(row: u32, part: u32) -> vec4<f32> {
    let d = 4u * part;
    return vec4<f32>(load_one(row, d), load_one(row, d + 1u), load_one(row, d + 2u), load_one(row, d + 3u));
}
