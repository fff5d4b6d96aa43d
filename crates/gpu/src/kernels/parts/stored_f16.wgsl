// stored: results divided by 16, as float16: the form in which operand_f16.wgsl multiplies them

alias Stored = f16;

fn stored(value: f32) -> Stored {
    return f16(0.0625 * value);
}
