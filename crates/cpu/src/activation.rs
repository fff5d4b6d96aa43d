//! The activations of the reference's `ACT2FN`, their derivatives, and the ops that apply them.

use vit_msn_tensor::{Activation, Result, check_len};

use crate::elementwise::BLOCK;
use crate::runtime::parallel::{Rows, for_each_block_of_rows};
use crate::runtime::simd::{Exp, F32x4, constant, map_in_place, polynomial8};

/// Cost of an element in multiply-adds.
const WORK: usize = 16;

/// out = act(x).
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ.
pub fn activate(x: &[f32], act: Activation, out: &mut [f32]) -> Result<()> {
    check_len("The output of an activation", out.len(), &[x.len()])?;
    for_each_block(x, out, &|_, out| {
        let columns = out.len();
        activate_rows(act, &mut Rows::new(out, columns), 1, columns);
    });
    Ok(())
}

/// out = grad · act′(x), where x is the activation's input. The derivative of relu at 0 is 0, as in PyTorch.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths differ.
pub fn activate_backward(grad: &[f32], x: &[f32], act: Activation, out: &mut [f32]) -> Result<()> {
    check_len("The gradient of an activation", grad.len(), &[x.len()])?;
    check_len(
        "The gradient with respect to the input",
        out.len(),
        &[x.len()],
    )?;
    for_each_block(x, out, &|first, out| {
        differentiate(act, out);
        for (value, grad) in out.iter_mut().zip(&grad[first..]) {
            *value *= grad;
        }
    });
    Ok(())
}

/// Copies x to `out` and calls `run(first element, elements)` on its blocks.
fn for_each_block(x: &[f32], out: &mut [f32], run: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    for_each_block_of_rows(out, 1, x.len().saturating_mul(WORK), &|first, out| {
        let starts = (first..).step_by(BLOCK);
        for (first, out) in starts.zip(out.chunks_mut(BLOCK)) {
            out.copy_from_slice(&x[first..][..out.len()]);
            run(first, out);
        }
    });
}

/// Replaces the first `columns` values of each of `count` rows by their activations. NaN stays NaN; infinities
/// give the limits.
pub(crate) fn activate_rows(act: Activation, rows: &mut Rows<f32>, count: usize, columns: usize) {
    let rows = rows.each(count, columns);
    let zero = F32x4::splat(0.0);
    let pair: Pair = match act {
        Activation::Identity => return,
        Activation::Gelu => {
            let gelu = Gelu::new();
            return map_rows(rows, |x| gelu.of(x));
        }
        Activation::Relu => return map_rows(rows, |x| x.max(zero)),
        Activation::Silu => {
            let gate = Gate::new();
            return map_rows(rows, |x| gate.of(x, x));
        }
        Activation::GeluTanh => {
            let (gate, gelu) = (Gate::new(), GeluTanh::new());
            return map_rows(rows, |x| gate.of(x, gelu.argument(x)));
        }
        Activation::QuickGelu => {
            let (gate, slope) = (Gate::new(), constant(1.702));
            return map_rows(rows, |x| gate.of(x, x.mul(slope)));
        }
        Activation::Relu6 => relu6,
        Activation::LeakyRelu => leaky_relu,
        Activation::Relu2 => relu2,
        Activation::Tanh => tanh,
        Activation::Sigmoid => sigmoid,
        Activation::Mish => mish,
        Activation::Gelu10 => gelu_10,
        Activation::Laplace => laplace,
    };
    map_pairs(rows, pair, 0);
}

/// Replaces every value by the activation's derivative at it. NaN stays NaN; infinities give the limits.
fn differentiate(act: Activation, values: &mut [f32]) {
    let (zero, one) = (F32x4::splat(0.0), F32x4::splat(1.0));
    let pair: Pair = match act {
        Activation::Identity => return values.fill(1.0),
        Activation::Gelu => {
            let gelu = GeluDerivative::new();
            return map_in_place(values, |x| gelu.of(x));
        }
        Activation::Relu => {
            return map_in_place(values, |x| zero.lt(x).select(one, nan_or_zero(x)));
        }
        Activation::Silu => {
            let gate = GateDerivative::new();
            return map_in_place(values, |x| gate.of(x, x, gate.exp.one));
        }
        Activation::GeluTanh => {
            let (gate, gelu) = (GateDerivative::new(), GeluTanhDerivative::new());
            return map_in_place(values, |x| gelu.of(x, &gate));
        }
        Activation::QuickGelu => {
            let (gate, factor) = (GateDerivative::new(), constant(1.702));
            return map_in_place(values, |x| gate.of(x, x.mul(factor), factor));
        }
        Activation::Relu6 => relu6,
        Activation::LeakyRelu => leaky_relu,
        Activation::Relu2 => relu2,
        Activation::Tanh => tanh,
        Activation::Sigmoid => sigmoid,
        Activation::Mish => mish,
        Activation::Gelu10 => gelu_10,
        Activation::Laplace => laplace,
    };
    map_pairs([values], pair, 1);
}

/// [`activate_rows`] for a single row.
#[cfg(test)]
pub(crate) fn activate_in_place(act: Activation, values: &mut [f32]) {
    let columns = values.len();
    activate_rows(act, &mut Rows::new(values, columns), 1, columns);
}

#[inline(always)]
fn map_rows<'a>(rows: impl Iterator<Item = &'a mut [f32]>, op: impl Fn(F32x4) -> F32x4) {
    for row in rows {
        map_in_place(row, &op);
    }
}

/// The value and the derivative of an activation that few models use. Its code exists only once in the binary,
/// which every user downloads.
type Pair = fn(F32x4) -> [F32x4; 2];

fn map_pairs<'a>(rows: impl IntoIterator<Item = &'a mut [f32]>, pair: Pair, which: usize) {
    for row in rows {
        map_pair(row, pair, which);
    }
}

#[inline(never)]
fn map_pair(row: &mut [f32], pair: Pair, which: usize) {
    // Opaque to LLVM, which would otherwise specialise the loop for each function.
    let pair = std::hint::black_box(pair);
    map_in_place(row, |x| pair(x)[which]);
}

/// The slope of leaky_relu for negative values.
const LEAK: f32 = 0.01;

/// 0 for every number; NaN stays NaN. x is clamped first, since ∞ − ∞ would be NaN.
#[inline(always)]
fn nan_or_zero(x: F32x4) -> F32x4 {
    let one = F32x4::splat(1.0);
    let capped = x.min(one).max(F32x4::splat(-1.0));
    capped.sub(capped)
}

/// Minimax polynomial of r = ½·erfcx(a/√2) in t on a ∈ [0, 6], error 1.1e-8.
const GELU_TAIL: [f32; 8] = [
    -3.419_456_2e-4,
    1.348_339_6e-1,
    9.586_185e-2,
    2.396_032_3e-1,
    -1.859_047e-1,
    4.204_656_5e-1,
    -2.550_663e-1,
    5.054_825e-2,
];

/// GELU with its constants.
struct Gelu {
    exp: Exp,
    largest: F32x4,
    slope: F32x4,
    minus_half: F32x4,
    r: [F32x4; 8],
}

impl Gelu {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            largest: constant(6.0),
            slope: constant(0.325),
            minus_half: constant(-0.5),
            r: GELU_TAIL.map(constant),
        }
    }

    /// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), where Φ(−a) = e^(−a²/2)·r(t), t = 1 / (1 + 0.325a): no large numbers
    /// cancel. Beyond 6, where a·r is nearly constant, r's argument is clamped.
    #[inline(always)]
    fn of(&self, x: F32x4) -> F32x4 {
        let one = self.exp.one;
        let size = x.abs().min(self.largest);
        let t = one.div(size.mul_add(self.slope, one));
        let decay = self.exp.of_nonpositive(x.mul(x).mul(self.minus_half));
        x.max(F32x4::splat(0.0))
            .sub(size.mul(decay).mul(polynomial8(t, self.r)))
    }
}

/// Minimax polynomial of (Φ(x) − ½) / x in x² on |x| ≤ 4.25, exactly ½ / 4.25 at the end. It makes an error of at most
/// 1e-4 in x·Φ(x).
const ROUGH_GELU: [f32; 8] = [
    3.984_2e-1,
    -6.545_345e-2,
    9.257_796e-3,
    -9.404_415e-4,
    6.552_635e-5,
    -2.938_753e-6,
    7.570_663e-8,
    -8.460_173e-10,
];

/// [`activate_rows`] with gelu, within 1e-4: for sums whose own error is larger. It takes less than half the
/// instructions, without an exponential or a division.
pub(crate) fn activate_rows_with_rough_gelu(rows: &mut Rows<f32>, count: usize, columns: usize) {
    let [lowest, highest, half] = [-4.25, 4.25, 0.5].map(constant);
    let series = ROUGH_GELU.map(constant);
    map_rows(rows.each(count, columns), |x| {
        // Below −4.25, x·Φ(x) is 0 within the error; above, Φ(x) is 1.
        let x = x.max(lowest);
        let inner = x.min(highest);
        let odd = polynomial8(inner.mul(inner), series);
        x.mul(inner.mul_add(odd, half))
    });
}

/// The tanh form is x·σ(2u), since ½(1 + tanh u) = σ(2u).
struct GeluTanh {
    linear: F32x4,
    cubic: F32x4,
}

impl GeluTanh {
    #[inline(always)]
    fn new() -> Self {
        // 2·√(2/π), and the coefficient of the cubic term.
        Self {
            linear: constant(1.595_769_2),
            cubic: constant(1.595_769_2 * 0.044_715),
        }
    }

    /// 2u
    #[inline(always)]
    fn argument(&self, x: F32x4) -> F32x4 {
        x.mul(x).mul_add(self.cubic, self.linear).mul(x)
    }
}

/// x·σ(u) with its constants.
struct Gate {
    exp: Exp,
    lowest: F32x4,
}

impl Gate {
    #[inline(always)]
    fn new() -> Self {
        // Below −100 the result is effectively 0, while −∞ times 0 would be NaN.
        Self {
            exp: Exp::new(),
            lowest: constant(-100.0),
        }
    }

    /// x·σ(u), where u has the sign of x.
    #[inline(always)]
    fn of(&self, x: F32x4, u: F32x4) -> F32x4 {
        let (zero, one) = (F32x4::splat(0.0), self.exp.one);
        // e^−|u| never overflows; σ(u) is 1 or e^−|u| over 1 + e^−|u|.
        let decay = self.exp.of_nonpositive(zero.sub(u.abs()));
        let numerator = u.lt(zero).select(decay, one);
        x.max(self.lowest).mul(numerator.div(decay.add(one)))
    }
}

/// The derivative of gelu, with its constants.
struct GeluDerivative {
    exp: Exp,
    bounds: [F32x4; 2],
    slope: F32x4,
    minus_half: F32x4,
    /// 1 / √(2π)
    density: F32x4,
    tail: [F32x4; 8],
}

impl GeluDerivative {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            bounds: [6.0, -6.0].map(constant),
            slope: constant(0.325),
            minus_half: constant(-0.5),
            density: constant(0.398_942_3),
            tail: GELU_TAIL.map(constant),
        }
    }

    /// Φ(x) + x·φ(x); Φ(−a) = e^(−a²/2)·r(1 / (1 + 0.325a)) as in the activation itself.
    #[inline(always)]
    fn of(&self, x: F32x4) -> F32x4 {
        let one = self.exp.one;
        // Beyond ±6 the derivative is within 1e-7 of its limit.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        let t = one.div(x.abs().mul_add(self.slope, one));
        let decay = self.exp.of_nonpositive(x.mul(x).mul(self.minus_half));
        let tail = decay.mul(polynomial8(t, self.tail));
        let cdf = x.lt(F32x4::splat(0.0)).select(tail, one.sub(tail));
        x.mul(decay).mul_add(self.density, cdf)
    }
}

/// The derivative of x·σ(2u) with 2u = x·(a + b·x²), as in the activation itself.
struct GeluTanhDerivative {
    bounds: [F32x4; 2],
    linear: F32x4,
    cubic: F32x4,
    three_cubic: F32x4,
}

impl GeluTanhDerivative {
    #[inline(always)]
    fn new() -> Self {
        let (linear, cubic) = (1.595_769_2, 1.595_769_2 * 0.044_715);
        Self {
            bounds: [10.0, -10.0].map(constant),
            linear: constant(linear),
            cubic: constant(cubic),
            three_cubic: constant(3.0 * cubic),
        }
    }

    #[inline(always)]
    fn of(&self, x: F32x4, gate: &GateDerivative) -> F32x4 {
        // Beyond ±10 the derivative equals its limit, while x³ might overflow.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        let square = x.mul(x);
        let inner = square.mul_add(self.cubic, self.linear).mul(x);
        let inner_derivative = square.mul_add(self.three_cubic, self.linear);
        gate.of(x, inner, inner_derivative)
    }
}

/// The derivative of x·σ(u), with its constants.
struct GateDerivative {
    exp: Exp,
    bounds: [F32x4; 2],
}

impl GateDerivative {
    #[inline(always)]
    fn new() -> Self {
        Self {
            exp: Exp::new(),
            bounds: [100.0, -100.0].map(constant),
        }
    }

    /// σ(u) + x·σ(u)·σ(−u)·u′, where u has the sign of x.
    #[inline(always)]
    fn of(&self, x: F32x4, u: F32x4, u_derivative: F32x4) -> F32x4 {
        let (zero, one) = (F32x4::splat(0.0), self.exp.one);
        // e^−|u| never overflows. σ(|u|) and σ(−|u|):
        let decay = self.exp.of_nonpositive(zero.sub(u.abs()));
        let large = one.div(decay.add(one));
        let small = decay.mul(large);
        let sigmoid = u.lt(zero).select(small, large);
        // Beyond ±100 the product is effectively 0, while ∞ times 0 would be NaN.
        let x = x.min(self.bounds[0]).max(self.bounds[1]);
        x.mul(u_derivative).mul(small.mul(large)).add(sigmoid)
    }
}

fn relu6(x: F32x4) -> [F32x4; 2] {
    let (zero, one, six) = (F32x4::splat(0.0), F32x4::splat(1.0), F32x4::splat(6.0));
    let inside = x.lt(six).select(one, zero);
    [
        x.max(zero).min(six),
        zero.lt(x).select(inside, nan_or_zero(x)),
    ]
}

fn leaky_relu(x: F32x4) -> [F32x4; 2] {
    let (zero, one, leak) = (F32x4::splat(0.0), F32x4::splat(1.0), F32x4::splat(LEAK));
    [
        x.max(x.mul(leak)),
        zero.lt(x).select(one, nan_or_zero(x).add(leak)),
    ]
}

fn relu2(x: F32x4) -> [F32x4; 2] {
    let x = x.max(F32x4::splat(0.0));
    [x.mul(x), x.add(x)]
}

/// e^−|x|, which never overflows.
#[inline(never)]
fn decay(x: F32x4) -> F32x4 {
    Exp::new().of_nonpositive(F32x4::splat(0.0).sub(x.abs()))
}

/// σ(x) and σ(−x).
fn sigmoids(x: F32x4) -> [F32x4; 2] {
    let (zero, one) = (F32x4::splat(0.0), F32x4::splat(1.0));
    let decay = decay(x);
    let large = one.div(decay.add(one));
    let small = decay.mul(large);
    let is_negative = x.lt(zero);
    [
        is_negative.select(small, large),
        is_negative.select(large, small),
    ]
}

fn sigmoid(x: F32x4) -> [F32x4; 2] {
    let [sigmoid, rest] = sigmoids(x);
    [sigmoid, sigmoid.mul(rest)]
}

/// tanh(x) = σ(2x) − σ(−2x), or its series where the difference would lose digits; the derivative is
/// 4·σ(2x)·σ(−2x).
fn tanh(x: F32x4) -> [F32x4; 2] {
    let [sigmoid, rest] = sigmoids(x.add(x));
    let square = x.mul(x);
    let [c1, c3, c5, c7, c9] =
        [1.0, -1.0 / 3.0, 2.0 / 15.0, -17.0 / 315.0, 62.0 / 2835.0].map(F32x4::splat);
    let series = c9.mul_add(square, c7).mul_add(square, c5);
    let series = series.mul_add(square, c3).mul_add(square, c1).mul(x);
    let is_small = x.abs().lt(F32x4::splat(0.3));
    [
        is_small.select(series, sigmoid.sub(rest)),
        sigmoid.mul(rest).mul(F32x4::splat(4.0)),
    ]
}

/// With w = e^−|x|, tanh(ln(1 + eˣ)) is (1 + 2w) / (1 + 2w + 2w²) for x ≥ 0 and (w² + 2w) / (w² + 2w + 2)
/// below. x times its derivative is 4x·w·(1 + w) over the square of the denominator, times w for x ≥ 0.
fn mish(x: F32x4) -> [F32x4; 2] {
    let [zero, one, two, four] = [0.0, 1.0, 2.0, 4.0].map(F32x4::splat);
    // Beyond ±100 the factor of x effectively equals its limit, while ∞ times 0 would be NaN.
    let bounded = x.max(F32x4::splat(-100.0));
    let w = decay(x);
    let (square, twice) = (w.mul(w), w.add(w));
    let is_negative = x.lt(zero);
    let numerator = is_negative.select(square.add(twice), one.add(twice));
    let denominator = numerator.add(is_negative.select(two, square.add(square)));
    let tanh = numerator.div(denominator);
    let decay = is_negative.select(w, square).mul(one.add(w));
    let scale = decay.div(denominator.mul(denominator)).mul(four);
    [
        bounded.mul(tanh),
        bounded.min(F32x4::splat(100.0)).mul_add(scale, tanh),
    ]
}

fn gelu_10(x: F32x4) -> [F32x4; 2] {
    let (zero, ten) = (F32x4::splat(0.0), F32x4::splat(10.0));
    let (cdf, decay) = normal(x);
    // Beyond ±6 the derivative equals its limit, while ∞ times 0 would be NaN.
    let [low, high] = [-6.0, 6.0].map(F32x4::splat);
    let capped = x.min(high).max(low);
    let density = decay.mul(F32x4::splat(DENSITY));
    let value = x.max(low).mul(cdf);
    [
        value.min(ten),
        ten.lt(x).select(zero, capped.mul_add(density, cdf)),
    ]
}

/// Φ((x − μ) / σ) and its derivative.
fn laplace(x: F32x4) -> [F32x4; 2] {
    let precision = F32x4::splat(Activation::LAPLACE_DEVIATION.recip() as f32);
    let mean = F32x4::splat(Activation::LAPLACE_MEAN as f32);
    let (cdf, decay) = normal(x.sub(mean).mul(precision));
    [cdf, decay.mul(precision).mul(F32x4::splat(DENSITY))]
}

/// 1 / √(2π)
const DENSITY: f32 = 0.398_942_3;

/// Φ(z), computed from the same tail as [`Gelu::of`], and e^−½z².
#[inline(never)]
fn normal(z: F32x4) -> (F32x4, F32x4) {
    let exp = Exp::new();
    let decay = exp.of_nonpositive(z.mul(z).mul(F32x4::splat(-0.5)));
    let size = z.abs().min(F32x4::splat(6.0));
    let t = exp.one.div(size.mul_add(F32x4::splat(0.325), exp.one));
    let tail = decay.mul(polynomial8(t, GELU_TAIL.map(F32x4::splat)));
    let cdf = z.lt(F32x4::splat(0.0)).select(tail, exp.one.sub(tail));
    (cdf, decay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{same_with_workers, values};

    #[test]
    fn rough_gelu_is_near_gelu() {
        let x: Vec<f32> = (-100_000..=100_000)
            .map(|step| step as f32 * 1e-4)
            .collect();
        let (mut rough, mut exact) = (x.clone(), x);
        let columns = rough.len();
        activate_rows_with_rough_gelu(&mut Rows::new(&mut rough, columns), 1, columns);
        activate_in_place(Activation::Gelu, &mut exact);
        for (rough, exact) in rough.iter().zip(&exact) {
            assert!((rough - exact).abs() <= 1e-4, "{rough} {exact}");
        }
        let mut limits = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        activate_rows_with_rough_gelu(&mut Rows::new(&mut limits, 4), 1, 4);
        assert!(limits[0].is_nan() && limits[1] == f32::INFINITY);
        assert!(limits[2].abs() <= 1e-4 && limits[3] == 0.0);
    }

    #[test]
    fn every_activation_is_within_2e_7() {
        for &act in Activation::ALL {
            let mut worst = 0.0f64;
            let inputs: Vec<f32> = (-200_000..=200_000)
                .map(|step| step as f32 * 1e-4)
                .collect();
            let mut outputs = inputs.clone();
            activate_in_place(act, &mut outputs);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                // Beyond 1, the last bit of the result itself is worth more than 2e-7.
                let error = (f64::from(y) - act.definition(f64::from(x))).abs()
                    / f64::from(x.abs().max(1.0)).max(y.abs().into());
                worst = worst.max(error);
            }
            assert!(worst <= 2e-7, "{act:?}: {worst:e}");
        }
    }

    /// The limits of a function at infinities; its value elsewhere.
    fn limit(function: impl Fn(f64) -> f64, x: f32) -> f32 {
        let x = f64::from(x);
        let limit = function(if x.is_infinite() {
            1e100f64.copysign(x)
        } else {
            x
        });
        limit as f32
    }

    const EXTREMES: [f32; 8] = [
        f32::NEG_INFINITY,
        f32::MIN,
        -1e20,
        -100.0,
        0.0,
        1e20,
        f32::MAX,
        f32::INFINITY,
    ];

    #[test]
    fn infinities_and_huge_values_give_the_limits() {
        for &act in Activation::ALL {
            let mut values = EXTREMES;
            activate_in_place(act, &mut values);
            for (x, actual) in EXTREMES.into_iter().zip(values) {
                let expected = limit(|x| act.definition(x), x);
                let close = (actual - expected).abs() <= 1e-6 * expected.abs() + 1e-25;
                // Laplace has an ordinary value at 0, not a limit: allow for rounding.
                let close = close || (actual - expected).abs() < 2e-7 && x == 0.0;
                assert!(
                    actual == expected || close,
                    "{act:?} of {x}: {actual} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for &act in Activation::ALL {
            let mut values = [1.0, f32::NAN, 2.0];
            activate_in_place(act, &mut values);
            assert!(
                !values[0].is_nan() && values[1].is_nan() && !values[2].is_nan(),
                "{act:?}"
            );
        }
    }

    fn derivative(act: Activation, x: f64) -> f64 {
        let step = 1e-5;
        (act.definition(x + step) - act.definition(x - step)) / (2.0 * step)
    }

    #[test]
    fn every_derivative_is_the_activations() {
        for &act in Activation::ALL {
            // Offset by half a step, to avoid corners.
            let x: Vec<f32> = (-20_000..20_000).map(|v| (v as f32 + 0.5) * 1e-3).collect();
            let mut out = vec![f32::NAN; x.len()];
            activate_backward(&vec![2.0; x.len()], &x, act, &mut out).unwrap();
            for (&x, &actual) in x.iter().zip(&out) {
                let expected = 2.0 * derivative(act, f64::from(x));
                let error = (f64::from(actual) - expected).abs();
                assert!(
                    error <= 1e-6 * expected.abs().max(1.0),
                    "{act:?} at {x}: {actual} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn derivatives_have_limits_and_nan_stays_nan() {
        let x = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1e20,
            -200.0,
            200.0,
            1e20,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
        ];
        for &act in Activation::ALL.iter().skip(1) {
            let mut out = [0.0; 9];
            activate_backward(&[1.0; 9], &x, act, &mut out).unwrap();
            let (below, above) = match act {
                Activation::LeakyRelu => (0.01, 1.0),
                Activation::Relu6
                | Activation::Tanh
                | Activation::Sigmoid
                | Activation::Gelu10
                | Activation::Laplace => (0.0, 0.0),
                _ => (0.0, 1.0),
            };
            assert!(
                out[..4].iter().all(|v| (v - below).abs() < 1e-6),
                "{act:?}: {out:?}"
            );
            if act == Activation::Relu2 {
                assert_eq!(out[4..6], [400.0, 2e20]);
            } else {
                assert!(
                    out[4..8].iter().all(|v| (v - above).abs() < 1e-6),
                    "{act:?}: {out:?}"
                );
            }
            assert!(out[8].is_nan(), "{act:?}");
        }
    }

    #[test]
    fn corners_are_pytorchs() {
        let mut out = [f32::NAN; 3];
        activate_backward(&[5.0; 3], &[-0.0, 0.0, 6.0], Activation::Relu6, &mut out).unwrap();
        assert_eq!(out, [0.0; 3]);
        activate_backward(
            &[5.0; 3],
            &[-0.0, 0.0, 6.0],
            Activation::LeakyRelu,
            &mut out,
        )
        .unwrap();
        assert_eq!(out, [5.0 * LEAK, 5.0 * LEAK, 5.0]);
        activate_backward(&[5.0; 3], &[-0.0, 0.0, 1e-30], Activation::Relu, &mut out).unwrap();
        assert_eq!(out, [0.0, 0.0, 5.0]);
    }

    #[test]
    fn a_separate_activation_is_the_fused_one() {
        for len in [0, 1, 5, 40_001] {
            let x = values(len, 3);
            for &act in Activation::ALL {
                let mut expected = x.clone();
                activate_in_place(act, &mut expected);
                let mut out = vec![f32::NAN; len];
                activate(&x, act, &mut out).unwrap();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, grad) = (values(70_001, 4), values(70_001, 5));
        for act in [Activation::Gelu, Activation::Silu, Activation::Mish] {
            same_with_workers(|| {
                let mut out = vec![0.0; x.len()];
                let mut derivatives = vec![0.0; x.len()];
                activate(&x, act, &mut out).unwrap();
                activate_backward(&grad, &x, act, &mut derivatives).unwrap();
                [out, derivatives].concat()
            });
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let act = Activation::Gelu;
        for (grad, x, out) in [(2, 3, 3), (3, 3, 4)] {
            let error =
                activate_backward(&vec![0.0; grad], &vec![0.0; x], act, &mut vec![0.0; out]);
            assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
        }
        let error = activate(&[0.0; 2], act, &mut [0.0; 3]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }
}
