// grad_scalar: the gradient of attention's result, heads of any size, zero past the end

@group(0) @binding(2) var<storage, read> grad: array<f32>;

fn load_grad(head: u32, token: u32, part: u32) -> vec4<f32> {
    let row = head / params.heads * params.tokens + token;
    let first = row * params.width + head % params.heads * params.head_dim;
    var value = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        let channel = 4u * part + i;
        if channel < params.head_dim {
            value[i] = grad[first + channel];
        }
    }
    return value;
}
