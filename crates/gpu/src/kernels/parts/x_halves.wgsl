// x_halves: rows written by stored_f16.wgsl, whose length is a multiple of four

@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;

fn load_x(row: u32, part: u32) -> vec4<f16> {
    return x[row * (params.inputs / 4u) + part];
}

fn operand(x: vec4<f16>) -> Operand {
    return x;
}
