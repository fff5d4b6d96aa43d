// stored: results as float16 of a sixteenth, which is what operand_f16.wgsl makes of them for a product

alias Stored = f16;

fn stored(value: f32) -> Stored {
    return f16(0.0625 * value);
}
