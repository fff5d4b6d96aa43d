// context_scalar: stores attention's result, for heads of any size

@group(0) @binding(2) var<storage, read_write> y: array<Stored>;

fn store_one(first: u32, channel: u32, value: f32) {
    if channel < params.head_dim {
        y[first + channel] = stored(value);
    }
}

fn store(head: u32, token: u32, part: u32, values: vec4<f32>) {
    let row = head / params.heads * params.tokens + token;
    let first = row * params.width + head % params.heads * params.head_dim;
    let c = 4u * part;
    store_one(first, c, values.x);
    store_one(first, c + 1u, values.y);
    store_one(first, c + 2u, values.z);
    store_one(first, c + 3u, values.w);
}
