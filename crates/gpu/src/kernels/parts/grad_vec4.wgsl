// grad_vec4: the gradient of attention's result, for head sizes that are multiples of four

@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;

fn load_grad(head: u32, token: u32, part: u32) -> vec4<f32> {
    let row = head / params.heads * params.tokens + token;
    return grad[(row * params.width + head % params.heads * params.head_dim) / 4u + part];
}
