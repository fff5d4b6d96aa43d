// activation: the elementwise activations of linear layers. Constant ACTIVATION: 0 identity, 1 gelu, 2 relu, 3 silu,
// 4 gelu by tanh, 5 x·σ(1.702x).

fn activate(v: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return gelu(v); }
        case 2u: { return max(v, 0.0); }
        case 3u: { return times_sigmoid(v, v); }
        // The tanh form is v·σ(2u), since ½(1 + tanh u) = σ(2u): 1.5957691 is 2·√(2/π).
        case 4u: { return times_sigmoid(v, 1.5957691 * v * (1.0 + 0.044715 * v * v)); }
        case 5u: { return times_sigmoid(v, 1.702 * v); }
        default: { return v; }
    }
}

// v·Φ(v) = max(v, 0) − |v|·Φ(−|v|). Beyond 14 the tail is 0.
fn gelu(v: f32) -> f32 {
    let size = min(abs(v), 14.0);
    return max(v, 0.0) - size * normal_tail(size);
}

// Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.3a)); r is a minimax polynomial of ½·erfcx(a/√2) on a ∈ [0, 14], error 2e-8, the one
// that the CPU's gelu uses.
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

// v·σ(u) for u of v's sign; e^−|u| never overflows.
fn times_sigmoid(v: f32, u: f32) -> f32 {
    let decay = exp(-abs(u));
    return v * select(1.0, decay, u < 0.0) / (1.0 + decay);
}
