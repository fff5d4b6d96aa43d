//! A test of the kernels on the device that will run them. Some drivers compute wrong results with subgroups, float16 or
//! a certain tile, and some only from the second run on. Each variant in use computes a small layer, attention or layer
//! norm twice: with other values the second time, but in the same buffers. Variants that fail are disabled.

use std::future::Future;
use std::rc::Rc;

use vit_msn_tensor::{Dtype, Error, Result};

use crate::buffers::GpuTensor;
use crate::context::{Context, SUBGROUPS};
use crate::kernels::attention::Tile;
use crate::kernels::linear::Strategy;
use crate::layer_norm;
use crate::stream::Stream;
use crate::weights::GpuLinear;

/// Rows, inputs and outputs of the layer: inputs that aren't a multiple of a tile's depth, and more outputs than the
/// side of most tiles.
const ROWS: usize = 9;
const INPUTS: usize = 40;
const OUTPUTS: usize = 68;

/// Tokens, heads and channels per head of the attention.
const TOKENS: usize = 21;
const HEADS: usize = 2;
const HEAD_DIM: usize = 16;

const EPS: f32 = 1e-6;

/// Maximum differences as a share of the largest magnitude: of float32, and of arithmetic in which x is rounded.
const TOLERANCE: f32 = 1e-3;
const TOLERANCE_OF_ROUNDED: f32 = 3e-2;

/// What a variant computes.
struct Case {
    /// The variant's name, or None if nothing can replace it.
    variant: Option<String>,
    op: &'static str,
    result: Result<GpuTensor>,
    expected: Vec<f32>,
    tolerance: f32,
}

impl Case {
    fn is_right(&self, found: &[f32]) -> bool {
        let largest = self
            .expected
            .iter()
            .fold(0.0f32, |most, v| most.max(v.abs()));
        let pairs = found.iter().zip(&self.expected);
        // A comparison with NaN is false.
        found.len() == self.expected.len()
            && pairs
                .clone()
                .all(|(a, b)| (a - b).abs() <= self.tolerance * largest)
    }
}

/// Records the test on a stream that only compiles pipelines.
///
/// # Errors
/// Those of the device.
pub fn plan_self_test(stream: &mut Stream) -> Result<()> {
    record(stream, 1.0).map(|_| ())
}

/// Runs the test, and disables the variants that fail. Resolves to a sentence about each.
///
/// # Errors
/// UNSUPPORTED if the device computes wrong results without any of the variants that can be disabled; OUT_OF_MEMORY,
/// ENGINE_DEAD.
pub fn self_test(stream: &mut Stream) -> Result<impl Future<Output = Result<Vec<String>>> + use<>> {
    let context = Rc::clone(stream.context());
    let mut runs = Vec::new();
    for sign in [1.0, -1.0] {
        let cases = record(stream, sign)?;
        let mut reads = Vec::new();
        for case in &cases {
            let read = case.result.as_ref().ok().map(|y| stream.record_read(y));
            reads.push(read.transpose()?);
        }
        stream.submit()?;
        runs.push((cases, reads));
    }
    Ok(async move {
        let mut findings = Vec::new();
        for (number, (cases, reads)) in runs.into_iter().enumerate() {
            for (case, read) in cases.into_iter().zip(reads) {
                let problem = match (&case.result, read) {
                    (Ok(_), Some(read)) => match case.is_right(&read.await?) {
                        true => continue,
                        false if number == 0 => "wrong results".to_string(),
                        false => "wrong results in the second run".to_string(),
                    },
                    (Err(error), _) => error.to_string(),
                    (Ok(_), None) => continue,
                };
                findings.extend(disable(&context, &case, &problem)?);
            }
        }
        if Strategy::in_use(&context).is_empty() {
            return Err(useless(
                "linear",
                "wrong results, or kernels that the driver refuses",
            ));
        }
        Ok(findings)
    })
}

/// A sentence about the variant, unless it was disabled before.
fn disable(context: &Context, case: &Case, problem: &str) -> Result<Option<String>> {
    let Some(variant) = &case.variant else {
        return Err(useless(case.op, problem));
    };
    if !context.uses(variant) {
        return Ok(None);
    }
    context.disable(variant);
    Ok(Some(format!(
        "Without {variant}: the self-test of {} failed on this GPU ({problem}).",
        case.op
    )))
}

fn useless(op: &str, problem: &str) -> Error {
    Error::Unsupported(format!(
        "The GPU fails the self-test of {op} ({problem}): update its driver, or use device \"wasm\"."
    ))
}

/// Records a case for each variant in use. The inputs have this sign.
fn record(stream: &mut Stream, sign: f32) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (dtype, strategy) in Strategy::in_use(stream.context()) {
        cases.push(linear_case(stream, dtype, strategy, sign)?);
    }
    for tile in Tile::in_use(stream.context(), HEAD_DIM) {
        cases.push(attention_case(stream, tile, sign)?);
    }
    cases.push(layer_norm_case(stream, sign)?);
    Ok(cases)
}

/// Integers from -4 to 4, whose products are exact in float16.
fn integers(len: usize, sign: f32) -> Vec<f32> {
    let value = |index: usize| (index * index + index / 5) % 9;
    (0..len)
        .map(|index| sign * (value(index) as f32 - 4.0))
        .collect()
}

fn linear_case(stream: &mut Stream, dtype: Dtype, strategy: Strategy, sign: f32) -> Result<Case> {
    let (x, weight) = (
        integers(ROWS * INPUTS, sign),
        integers(OUTPUTS * INPUTS, 1.0),
    );
    let bias = integers(OUTPUTS, 1.0);
    let mut weights = GpuLinear::new(stream, OUTPUTS, INPUTS, dtype, true)?;
    weights.set_rows(stream, 0, Dtype::F32, &Dtype::F32.encode(&weight)?)?;
    weights.set_bias(stream, 0, Dtype::F32, &Dtype::F32.encode(&bias)?)?;
    let x_gpu = stream.upload(&x, &[ROWS, INPUTS])?;
    let rows = x.chunks(INPUTS);
    let expected = rows.flat_map(|row| {
        let columns = weight.chunks(INPUTS).zip(&bias);
        columns.map(move |(column, bias)| dot(row, column) + bias)
    });
    Ok(Case {
        variant: Some(strategy.to_string()),
        op: "linear",
        expected: expected.collect(),
        result: strategy.compute(stream, &x_gpu, &weights),
        tolerance: match dtype {
            Dtype::F32 => TOLERANCE,
            _ => TOLERANCE_OF_ROUNDED,
        },
    })
}

fn attention_case(stream: &mut Stream, tile: Tile, sign: f32) -> Result<Case> {
    let width = HEADS * HEAD_DIM;
    let qkv: Vec<f32> = integers(TOKENS * 3 * width, sign)
        .iter()
        .map(|v| v / 4.0)
        .collect();
    let part = |token: usize, which: usize, head: usize| {
        let start = (token * 3 + which) * width + head * HEAD_DIM;
        &qkv[start..start + HEAD_DIM]
    };
    let mut expected = Vec::new();
    for (token, head) in (0..TOKENS).flat_map(|token| (0..HEADS).map(move |head| (token, head))) {
        let score =
            |key| (dot(part(token, 0, head), part(key, 1, head)) / (HEAD_DIM as f32).sqrt()).exp();
        let scores: Vec<f32> = (0..TOKENS).map(score).collect();
        let total: f32 = scores.iter().sum();
        let channel = |channel: usize| {
            let values = scores.iter().enumerate();
            let sum: f32 = values
                .map(|(key, score)| score * part(key, 2, head)[channel])
                .sum();
            sum / total
        };
        expected.extend((0..HEAD_DIM).map(channel));
    }
    let qkv_gpu = stream.upload(&qkv, &[1, TOKENS, 3 * width])?;
    Ok(Case {
        variant: (tile != Tile::Direct).then(|| tile.to_string()),
        op: "attention",
        result: tile.compute(stream, &qkv_gpu, HEADS),
        expected,
        tolerance: TOLERANCE,
    })
}

fn layer_norm_case(stream: &mut Stream, sign: f32) -> Result<Case> {
    let x = integers(ROWS * INPUTS, sign);
    let (weight, bias) = (integers(INPUTS, 1.0), integers(INPUTS, 1.0));
    let mut expected = Vec::new();
    for row in x.chunks(INPUTS) {
        let mean = row.iter().sum::<f32>() / INPUTS as f32;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / INPUTS as f32;
        let scaled = row.iter().map(|v| (v - mean) / (variance + EPS).sqrt());
        expected.extend(scaled.zip(&weight).zip(&bias).map(|((v, w), b)| v * w + b));
    }
    let variant = stream
        .context()
        .has_subgroups()
        .then(|| SUBGROUPS.to_string());
    let [x, weight, bias] = [
        stream.upload(&x, &[ROWS, INPUTS])?,
        stream.upload(&weight, &[INPUTS])?,
        stream.upload(&bias, &[INPUTS])?,
    ];
    Ok(Case {
        variant,
        op: "layer_norm",
        result: layer_norm(stream, &x, &weight, &bias, EPS),
        expected,
        tolerance: TOLERANCE,
    })
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{full_stream, stream, wait};

    #[test]
    fn a_sound_device_passes() {
        for mut stream in [stream(), full_stream()].into_iter().flatten() {
            assert_eq!(wait(self_test(&mut stream)), [""; 0]);
        }
    }

    #[test]
    fn wrong_values_disable_their_variant_once() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let case = |found: &[f32]| {
            let case = Case {
                variant: Some("float32 tile 64x64/8x8".to_string()),
                op: "linear",
                result: Err(Error::Unsupported(String::new())),
                expected: vec![2.0, 4.0],
                tolerance: TOLERANCE,
            };
            case.is_right(found)
        };
        assert!(case(&[2.0, 4.003]) && !case(&[2.0, 4.1]));
        assert!(!case(&[2.0, f32::NAN]) && !case(&[2.0]));
        let disabled = Case {
            variant: Some("float32 tile 64x64/8x8".to_string()),
            op: "linear",
            result: Err(Error::Unsupported(String::new())),
            expected: Vec::new(),
            tolerance: TOLERANCE,
        };
        let context = stream.context();
        let sentence = disable(context, &disabled, "wrong results")
            .unwrap()
            .unwrap();
        assert!(sentence.contains("float32 tile 64x64/8x8"), "{sentence}");
        assert_eq!(disable(context, &disabled, "wrong results"), Ok(None));
        let names = Strategy::in_use(context);
        assert!(
            names
                .iter()
                .all(|(_, by)| Some(by.to_string()) != disabled.variant)
        );
        assert_eq!(wait(self_test(&mut stream)), [""; 0]);
    }

    #[test]
    fn a_refused_pipeline_disables_its_tile() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        let before = Strategy::in_use(stream.context()).len();
        plan_self_test(&mut stream).unwrap();
        let labels = stream.pipeline_labels();
        let linear = labels
            .iter()
            .find(|label| label.starts_with("linear"))
            .unwrap();
        stream.context().refuse(linear);
        let findings = wait(self_test(&mut stream));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("driver refuses"), "{findings:?}");
        assert_eq!(Strategy::in_use(stream.context()).len(), before - 1);
    }

    #[test]
    fn without_any_tile_the_device_is_unsupported() {
        let Some(mut stream) = full_stream() else {
            return;
        };
        for (_, by) in Strategy::in_use(stream.context()) {
            stream.context().disable(&by.to_string());
        }
        let error = pollster::block_on(self_test(&mut stream).unwrap()).unwrap_err();
        assert_eq!(error.code(), "UNSUPPORTED");
    }
}
