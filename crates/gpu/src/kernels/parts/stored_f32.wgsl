// stored_f32: results as float32

alias Stored = f32;

fn stored(value: f32) -> Stored {
    return value;
}

fn stored_four(values: vec4<f32>) -> vec4<Stored> {
    return values;
}
