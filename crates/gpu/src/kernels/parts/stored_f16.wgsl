// stored_f16: results as float16, as rounded_f16.wgsl rounds them

alias Stored = f16;

fn stored(value: f32) -> Stored {
    return f16(clamp(value, -65504.0, 65504.0));
}

fn stored_four(values: vec4<f32>) -> vec4<Stored> {
    return vec4<f16>(clamp(values, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}
