// stored: results as float32

alias Stored = f32;

fn stored(value: f32) -> Stored {
    return value;
}
