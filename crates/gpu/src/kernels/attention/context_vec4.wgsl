// context_vec4: stores attention's result, for head sizes that are multiples of four

@group(0) @binding(2) var<storage, read_write> y: array<vec4<Stored>>;

fn store(head: u32, token: u32, part: u32, values: vec4<f32>) {
    let row = head / params.heads * params.tokens + token;
    y[(row * params.width + head % params.heads * params.head_dim) / 4u + part] = stored_four(values);
}
