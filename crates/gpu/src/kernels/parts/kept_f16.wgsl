// kept: results as float16 of a sixteenth, which is what operand_f16.wgsl makes of them for a product

alias Kept = f16;

fn kept(value: f32) -> Kept {
    return f16(0.0625 * value);
}
