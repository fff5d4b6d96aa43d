// activation: element-wise activations and their derivatives. Constant ACTIVATION: the numbers of crates/tensor's
// Activation.

fn activate(v: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return gelu(v); }
        case 2u: { return max(v, 0.0); }
        case 3u: { return times_sigmoid(v, v); }
        // The tanh form is v·σ(2u), since ½(1 + tanh u) = σ(2u): 1.5957691 is 2·√(2/π).
        case 4u: { return times_sigmoid(v, 1.5957691 * v * (1.0 + 0.044715 * v * v)); }
        case 5u: { return times_sigmoid(v, 1.702 * v); }
        case 6u: { return clamp(v, 0.0, 6.0); }
        case 7u: { return max(v, 0.01 * v); }
        case 8u: { return max(v, 0.0) * max(v, 0.0); }
        case 9u: { return tanh(clamp(v, -15.0, 15.0)); }
        case 10u: { return sigmoid(v); }
        case 11u: { return v * mish_factor(v); }
        case 12u: { return min(gelu(v), 10.0); }
        case 13u: { return normal((v - 0.707107) / 0.282095); }
        default: { return v; }
    }
}

// The derivative at v.
fn derivative(v: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return gelu_derivative(v); }
        // PyTorch's values at the corners.
        case 2u: { return select(0.0, 1.0, v > 0.0); }
        case 3u: { return sigmoid_derivative(v, v, 1.0); }
        case 4u: { return gelu_tanh_derivative(v); }
        case 5u: { return sigmoid_derivative(v, 1.702 * v, 1.702); }
        case 6u: { return select(0.0, 1.0, (v > 0.0) && (v < 6.0)); }
        case 7u: { return select(0.01, 1.0, v > 0.0); }
        case 8u: { return 2.0 * max(v, 0.0); }
        case 9u: { return 4.0 * sigmoid(2.0 * v) * sigmoid(-2.0 * v); }
        case 10u: { return sigmoid(v) * sigmoid(-v); }
        case 11u: { return mish_derivative(v); }
        case 12u: { return select(gelu_derivative(v), 0.0, v > 10.0); }
        case 13u: { return laplace_derivative((v - 0.707107) / 0.282095); }
        default: { return 1.0; }
    }
}

// v·Φ(v) = max(v, 0) − |v|·Φ(−|v|). The tail is 0 beyond 14.
fn gelu(v: f32) -> f32 {
    let size = min(abs(v), 14.0);
    return max(v, 0.0) - size * normal_tail(size);
}

// Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.3a)). r is a minimax polynomial of ½·erfcx(a/√2) on a ∈ [0, 14] with error 2e-8, the
// same as in the CPU's gelu.
fn normal_tail(size: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3 * size);
    var r = 3.7548766e-2;
    r = r * t - 1.6537375e-1;
    r = r * t + 2.213504e-1;
    r = r * t - 6.877566e-2;
    r = r * t + 1.3764614e-1;
    r = r * t + 9.657086e-2;
    r = r * t + 1.2148725e-1;
    r = r * t + 1.1954163e-1;
    r = r * t + 4.3772447e-6;
    return r * exp(-0.5 * size * size);
}

// v·σ(u), where u has the sign of v; e^−|u| never overflows.
fn times_sigmoid(v: f32, u: f32) -> f32 {
    let decay = exp(-abs(u));
    return v * select(1.0, decay, u < 0.0) / (1.0 + decay);
}

// Φ(v) + v·φ(v). Beyond 6 it equals its limit to within 1e-7.
fn gelu_derivative(value: f32) -> f32 {
    let v = clamp(value, -6.0, 6.0);
    let tail = normal_tail(abs(v));
    // 0.3989423 is 1 / √(2π).
    return select(1.0 - tail, tail, v < 0.0) + 0.3989423 * v * exp(-0.5 * v * v);
}

// The derivative of v·σ(u) with u = v·(a + b·v²). Beyond 10 it equals its limit, and v³ might overflow.
fn gelu_tanh_derivative(value: f32) -> f32 {
    let v = clamp(value, -10.0, 10.0);
    let square = v * v;
    let inner = v * (1.5957691 + 0.07135482 * square);
    return sigmoid_derivative(v, inner, 1.5957691 + 3.0 * 0.07135482 * square);
}

// The derivative of v·σ(u): σ(u) + v·σ(u)·σ(−u)·u′, where u has the sign of v. e^−|u| never overflows.
fn sigmoid_derivative(v: f32, u: f32, u_derivative: f32) -> f32 {
    let decay = exp(-abs(u));
    let large = 1.0 / (1.0 + decay);
    let small = decay * large;
    // Beyond 100 the product is practically 0, but ∞ times it would not be.
    return select(large, small, u < 0.0) + clamp(v, -100.0, 100.0) * u_derivative * (small * large);
}

fn sigmoid(v: f32) -> f32 {
    let decay = exp(-abs(v));
    return select(1.0, decay, v < 0.0) / (1.0 + decay);
}

// Φ(z). Beyond 14 it equals its limit.
fn normal(z: f32) -> f32 {
    let tail = normal_tail(min(abs(z), 14.0));
    return select(1.0 - tail, tail, z < 0.0);
}

// φ(z) / σ: 1.4142136 is 0.3989423 / 0.282095.
fn laplace_derivative(value: f32) -> f32 {
    let z = clamp(value, -14.0, 14.0);
    return 1.4142136 * exp(-0.5 * z * z);
}

// tanh(ln(1 + eᵛ)); e^−|v| never overflows.
fn mish_factor(v: f32) -> f32 {
    let w = exp(-abs(v));
    let numerator = select(1.0 + 2.0 * w, w * (w + 2.0), v < 0.0);
    return numerator / (numerator + select(2.0 * w * w, 2.0, v < 0.0));
}

// The factor, and v times its derivative: 4·w·(1 + w) over the square of the denominator, times w for v ≥ 0.
fn mish_derivative(v: f32) -> f32 {
    let w = exp(-abs(v));
    let numerator = select(1.0 + 2.0 * w, w * (w + 2.0), v < 0.0);
    let denominator = numerator + select(2.0 * w * w, 2.0, v < 0.0);
    let decay = select(w * w, w, v < 0.0) * (1.0 + w);
    return numerator / denominator + 4.0 * clamp(v, -100.0, 100.0) * decay / (denominator * denominator);
}
