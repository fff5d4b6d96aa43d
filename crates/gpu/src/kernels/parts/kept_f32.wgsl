// kept: results as float32

alias Kept = f32;

fn kept(value: f32) -> Kept {
    return value;
}
