// qkv_scalar: heads of any size, zero past the end

@group(0) @binding(1) var<storage, read> qkv: array<f32>;

// Where a head's query (which = 0), key (1) or value (2) of an image's first token starts.
fn start_of(head: u32, which: u32) -> u32 {
    let row = head / params.heads * params.tokens * 3u + which;
    return row * params.width + head % params.heads * params.head_dim;
}

// A channel of a vector that starts at `first`.
fn channel_of(first: u32, channel: u32) -> f32 {
    if channel < params.head_dim {
        return qkv[first + channel];
    }
    return 0.0;
}

// Four values of the vector of another token, starting at 4 · part.
fn load_from(start: u32, token: u32, part: u32) -> vec4<f32> {
    let first = start + token * 3u * params.width;
    let c = 4u * part;
    return vec4<f32>(
        channel_of(first, c),
        channel_of(first, c + 1u),
        channel_of(first, c + 2u),
        channel_of(first, c + 3u),
    );
}

fn load(head: u32, token: u32, which: u32, part: u32) -> vec4<f32> {
    return load_from(start_of(head, which), token, part);
}
