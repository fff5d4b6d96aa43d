// x_vec4: float32 rows whose length is a multiple of four

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

fn load_x(row: u32, part: u32) -> vec4<f32> {
    return x[row * (params.inputs / 4u) + part];
}
