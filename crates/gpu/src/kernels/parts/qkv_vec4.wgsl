// qkv_vec4: head sizes that are multiples of four

@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;

// Where a head's query (which = 0), key (1) or value (2) of an image's first token starts.
fn start_of(head: u32, which: u32) -> u32 {
    let row = head / params.heads * params.tokens * 3u + which;
    return (row * params.width + head % params.heads * params.head_dim) / 4u;
}

// Four values of the vector of another token, starting at 4 · part.
fn load_from(start: u32, token: u32, part: u32) -> vec4<f32> {
    return qkv[start + token * (3u * params.width / 4u) + part];
}

fn load(head: u32, token: u32, which: u32, part: u32) -> vec4<f32> {
    return load_from(start_of(head, which), token, part);
}
