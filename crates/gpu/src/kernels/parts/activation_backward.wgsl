// activation_backward: the derivatives of activation.wgsl's functions, with the same constant ACTIVATION

fn slope(v: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return gelu_slope(v); }
        // At 0 it is 0, as PyTorch's.
        case 2u: { return select(0.0, 1.0, v > 0.0); }
        case 3u: { return slope_of_sigmoid(v, v, 1.0); }
        case 4u: { return gelu_tanh_slope(v); }
        case 5u: { return slope_of_sigmoid(v, 1.702 * v, 1.702); }
        default: { return 1.0; }
    }
}

// Φ(v) + v·φ(v). Beyond 6 it is its limit to within 1e-7.
fn gelu_slope(value: f32) -> f32 {
    let v = clamp(value, -6.0, 6.0);
    let tail = normal_tail(abs(v));
    // 0.3989423 is 1 / √(2π).
    return select(1.0 - tail, tail, v < 0.0) + 0.3989423 * v * exp(-0.5 * v * v);
}

// Of v·σ(u) with u = v·(a + b·v²). Beyond 10 it is its limit, while v³ might overflow.
fn gelu_tanh_slope(value: f32) -> f32 {
    let v = clamp(value, -10.0, 10.0);
    let square = v * v;
    let inner = v * (1.5957691 + 0.07135482 * square);
    return slope_of_sigmoid(v, inner, 1.5957691 + 3.0 * 0.07135482 * square);
}

// The derivative of v·σ(u): σ(u) + v·σ(u)·σ(−u)·u′, for u of v's sign. e^−|u| never overflows.
fn slope_of_sigmoid(v: f32, u: f32, u_slope: f32) -> f32 {
    let decay = exp(-abs(u));
    let large = 1.0 / (1.0 + decay);
    let small = decay * large;
    // Beyond 100 the product is as good as 0, while ∞ times it would not be.
    return select(large, small, u < 0.0) + clamp(v, -100.0, 100.0) * u_slope * (small * large);
}

fn sigmoid(v: f32) -> f32 {
    let decay = exp(-abs(v));
    return select(1.0, decay, v < 0.0) / (1.0 + decay);
}
