// qkv: heads of any size, zero past the end

@group(0) @binding(1) var<storage, read> qkv: array<f32>;

// Four values of a head's query (which = 0), key (1) or value (2), starting at 4 · part.
fn load(head: u32, token: u32, which: u32, part: u32) -> vec4<f32> {
    let row = (head / params.heads * params.tokens + token) * 3u + which;
    let first = row * params.width + head % params.heads * params.head_dim;
    var value = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        let channel = 4u * part + i;
        if channel < params.head_dim {
            value[i] = qkv[first + channel];
        }
    }
    return value;
}
