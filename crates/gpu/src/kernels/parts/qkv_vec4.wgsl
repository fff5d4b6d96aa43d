// qkv: head sizes that are multiples of four

@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;

// Four values of a head's query (which = 0), key (1) or value (2), starting at 4 · part.
fn load(head: u32, token: u32, which: u32, part: u32) -> vec4<f32> {
    let row = (head / params.heads * params.tokens + token) * 3u + which;
    return qkv[(row * params.width + head % params.heads * params.head_dim) / 4u + part];
}
