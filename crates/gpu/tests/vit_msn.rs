//! Whole ViT-MSN models built from the ops of both backends, compared with the reference's outputs. Without a GPU
//! adapter the GPU tests report that they are skipped; with VIT_MSN_REQUIRE_GPU=1 they fail.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use safetensors::{Dtype as FileDtype, SafeTensors};
use vit_msn_cpu::Cpu;
use vit_msn_gpu::{
    Activations, Context, ContextOptions, GpuTensor, RequestedLimits, Stored, Stream,
};
use vit_msn_tensor::{Activation, Backend, Dtype, Pooling, Tensor};

const LAYERS: usize = 3;
const EPS: f32 = 1e-6;

/// (folder, activation, heads, the checkpoint's grid)
const FIXTURES: [(&str, Activation, usize, (usize, usize)); 13] = [
    ("tiny", Activation::Gelu, 4, (4, 4)),
    ("odd_heads", Activation::Gelu, 5, (8, 8)),
    ("interpolate", Activation::Gelu, 4, (4, 4)),
    ("masked", Activation::Gelu, 4, (4, 4)),
    ("backbone", Activation::Gelu, 4, (4, 4)),
    ("multi_label", Activation::Gelu, 4, (4, 4)),
    ("regression", Activation::Gelu, 4, (4, 4)),
    ("tiny_nobias", Activation::Gelu, 4, (4, 4)),
    ("tiny_rect", Activation::Gelu, 4, (4, 6)),
    ("tiny_gelu_new", Activation::GeluTanh, 4, (4, 4)),
    ("tiny_quick_gelu", Activation::QuickGelu, 4, (4, 4)),
    ("tiny_relu", Activation::Relu, 4, (4, 4)),
    ("tiny_silu", Activation::Silu, 4, (4, 4)),
];

/// A backend whose results can be read synchronously.
trait Subject: Backend {
    fn dims(x: &Self::Tensor) -> &[usize];
    fn input(x: &Self::Tensor) -> Self::Input<'_>;
    /// Converts the result of an op without a reader.
    fn plain(output: Self::Output) -> Self::Tensor;
    fn read(&mut self, x: &Self::Tensor) -> Vec<f32>;
}

impl Subject for Cpu {
    fn dims(x: &Tensor) -> &[usize] {
        x.dims()
    }

    fn input(x: &Tensor) -> &Tensor {
        x
    }

    fn plain(output: Tensor) -> Tensor {
        output
    }

    fn read(&mut self, x: &Tensor) -> Vec<f32> {
        x.data().to_vec()
    }
}

impl Subject for Stream {
    fn dims(x: &GpuTensor) -> &[usize] {
        x.dims()
    }

    fn input(x: &GpuTensor) -> Activations<'_> {
        Activations::Wide(x)
    }

    fn plain(output: Stored) -> GpuTensor {
        match output {
            Stored::Wide(tensor) => tensor,
            Stored::Halves(_) => unreachable!("no layer was named as its reader"),
        }
    }

    fn read(&mut self, x: &GpuTensor) -> Vec<f32> {
        pollster::block_on(Stream::read(self, x).unwrap()).unwrap()
    }
}

fn stream(limits: RequestedLimits) -> Option<Stream> {
    context(limits).map(|context| Stream::new(Rc::new(context)).unwrap())
}

fn context(limits: RequestedLimits) -> Option<Context> {
    let options = ContextOptions {
        allow_software: true,
        limits,
    };
    match pollster::block_on(Context::new(options)) {
        Ok(context) => Some(context),
        Err(error) if std::env::var_os("VIT_MSN_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("{error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// The tensors of a file by name, without the prefix "vit.": type, shape, bytes.
struct Tensors(HashMap<String, (FileDtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn open(path: PathBuf) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let entry = |(key, view): (String, safetensors::tensor::TensorView)| {
            let key = key.strip_prefix("vit.").unwrap_or(&key).to_string();
            (
                key,
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        };
        Self(file.tensors().into_iter().map(entry).collect())
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn dims(&self, key: &str) -> &[usize] {
        &self.0[key].1
    }

    fn bytes(&self, key: &str) -> &[u8] {
        &self.0[key].2
    }

    fn floats(&self, key: &str) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes(key).len() / 4];
        Dtype::F32.decode(self.bytes(key), &mut values).unwrap();
        values
    }

    fn upload<B: Backend>(&self, backend: &mut B, key: &str) -> B::Tensor {
        backend.tensor(self.floats(key), self.dims(key)).unwrap()
    }
}

struct Model<B: Backend> {
    activation: Activation,
    heads: usize,
    grid: (usize, usize),
    patch: (usize, usize),
    eager: bool,
    parameters: HashMap<String, B::Tensor>,
    layers: HashMap<String, B::Linear>,
}

impl<B: Subject> Model<B> {
    /// Loads a fixture's checkpoint, storing the encoder's weights as `dtype`. Only these weights may be int8.
    fn new(
        backend: &mut B,
        (folder, activation, heads, grid): (&str, Activation, usize, (usize, usize)),
        dtype: Dtype,
        eager: bool,
    ) -> Self {
        let checkpoint = Tensors::open(fixture(folder).join("model.safetensors"));
        let around = if dtype == Dtype::I8 {
            Dtype::F32
        } else {
            dtype
        };
        let mut layers = HashMap::new();
        let mut load = |backend: &mut B, key: &str, parts: &[&str], dtype| {
            if checkpoint.has(&format!("{}.weight", parts[0])) {
                layers.insert(key.to_string(), fuse(backend, &checkpoint, parts, dtype));
            }
        };
        for index in 0..LAYERS {
            let key = |name: &str| format!("encoder.layer.{index}.{name}");
            let qkv =
                ["query", "key", "value"].map(|name| key(&format!("attention.attention.{name}")));
            load(
                backend,
                &key("qkv"),
                &qkv.each_ref().map(String::as_str),
                dtype,
            );
            for name in [
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            ] {
                load(backend, &key(name), &[&key(name)], dtype);
            }
        }
        let projection = "embeddings.patch_embeddings.projection";
        load(backend, projection, &[projection], around);
        load(backend, "classifier", &["classifier"], around);
        let parameters = checkpoint
            .0
            .iter()
            .map(|(key, (_, dims, bytes))| {
                let tensor = backend.parameter(bytes, Dtype::F32, around, dims);
                (key.clone(), tensor.unwrap())
            })
            .collect();
        let dims = checkpoint.dims(&format!("{projection}.weight"));
        Self {
            activation,
            heads,
            grid,
            patch: (dims[2], dims[3]),
            eager,
            parameters,
            layers,
        }
    }

    fn norm(&self, backend: &mut B, x: &B::Tensor, key: &str) -> B::Tensor {
        let [weight, bias] =
            ["weight", "bias"].map(|kind| &self.parameters[&format!("{key}.{kind}")]);
        B::plain(backend.layer_norm(x, weight, bias, EPS, None).unwrap())
    }

    fn linear(
        &self,
        backend: &mut B,
        x: &B::Tensor,
        key: &str,
        activation: Activation,
        residual: Option<&B::Tensor>,
    ) -> B::Tensor {
        let (x, layer) = (B::input(x), &self.layers[key]);
        B::plain(
            backend
                .linear(x, layer, activation, residual, None)
                .unwrap(),
        )
    }

    fn embed(&self, backend: &mut B, inputs: &Tensors) -> B::Tensor {
        let pixels = inputs.upload(backend, "in.pixel_values");
        let projection = &self.layers["embeddings.patch_embeddings.projection"];
        let patches = backend
            .patch_embed(&pixels, projection, self.patch)
            .unwrap();
        let [.., height, width] = *B::dims(&pixels) else {
            panic!("pixel_values have 4 dimensions")
        };
        let grid = (height / self.patch.0, width / self.patch.1);
        let mut positions = &self.parameters["embeddings.position_embeddings"];
        let interpolated;
        if grid != self.grid {
            interpolated = backend
                .interpolate_positions(positions, self.grid, grid)
                .unwrap();
            positions = &interpolated;
        }
        let mask = inputs.has("in.bool_masked_pos").then(|| {
            let mask = inputs.bytes("in.bool_masked_pos");
            (mask, &self.parameters["embeddings.mask_token"])
        });
        let cls = &self.parameters["embeddings.cls_token"];
        backend
            .embed_tokens(&patches, cls, positions, mask)
            .unwrap()
    }

    /// The layer's output, and its probabilities if attention is eager.
    fn layer(
        &self,
        backend: &mut B,
        x: &B::Tensor,
        index: usize,
    ) -> (B::Tensor, Option<B::Tensor>) {
        use Activation::Identity;
        let key = |name: &str| format!("encoder.layer.{index}.{name}");
        let normed = self.norm(backend, x, &key("layernorm_before"));
        let qkv = self.linear(backend, &normed, &key("qkv"), Identity, None);
        let (context, probs) = if self.eager {
            let [context, probs] = backend.eager_attention(&qkv, self.heads, None).unwrap();
            (context, Some(probs))
        } else {
            let context = backend.scaled_dot_product_attention(&qkv, self.heads, None);
            (B::plain(context.unwrap()), None)
        };
        let output = key("attention.output.dense");
        let x = self.linear(backend, &context, &output, Identity, Some(x));
        let normed = self.norm(backend, &x, &key("layernorm_after"));
        let dense = key("intermediate.dense");
        let hidden = self.linear(backend, &normed, &dense, self.activation, None);
        let x = self.linear(backend, &hidden, &key("output.dense"), Identity, Some(&x));
        (x, probs)
    }

    /// Runs the fixture and compares all of its expected outputs, within `tolerance`.
    fn check(&self, backend: &mut B, expected: &Tensors, tolerance: f32) {
        let mut x = self.embed(backend, expected);
        let compare = |backend: &mut B, actual: &B::Tensor, name: &str| {
            let actual = Subject::read(backend, actual);
            assert_within(name, &actual, &expected.floats(name), tolerance);
        };
        for index in 0..LAYERS {
            compare(backend, &x, &format!("out.hidden_states.{index}"));
            let (y, probs) = self.layer(backend, &x, index);
            if let Some(probs) = probs {
                compare(backend, &probs, &format!("out.attentions.{index}"));
            }
            x = y;
        }
        compare(backend, &x, &format!("out.hidden_states.{LAYERS}"));
        let x = self.norm(backend, &x, "layernorm");
        if expected.has("out.last_hidden_state") {
            return compare(backend, &x, "out.last_hidden_state");
        }
        let cls = backend.pool(&x, Pooling::Cls).unwrap();
        let logits = self.linear(backend, &cls, "classifier", Activation::Identity, None);
        compare(backend, &logits, "out.logits");
        let loss = loss(backend, &logits, expected);
        compare(backend, &loss, "out.loss");
    }
}

fn loss<B: Subject>(backend: &mut B, logits: &B::Tensor, expected: &Tensors) -> B::Tensor {
    if expected.0["in.labels"].0 == FileDtype::I64 {
        let (labels, _) = expected.bytes("in.labels").as_chunks::<8>();
        let labels: Vec<i32> = labels
            .iter()
            .map(|label| i64::from_le_bytes(*label) as i32)
            .collect();
        return backend.cross_entropy(logits, &labels, 0.0).unwrap();
    }
    let targets = expected.upload(backend, "in.labels");
    match expected.dims("out.logits")[1] {
        1 => backend.mse_loss(logits, &targets).unwrap(),
        _ => backend.bce_with_logits(logits, &targets).unwrap(),
    }
}

/// Merges layers with the same inputs into one, concatenating their outputs.
fn fuse<B: Subject>(
    backend: &mut B,
    checkpoint: &Tensors,
    parts: &[&str],
    dtype: Dtype,
) -> B::Linear {
    let weight = |part: &str| format!("{part}.weight");
    let dims = checkpoint.dims(&weight(parts[0]));
    let (outputs, inputs) = (dims[0], dims[1..].iter().product());
    let bias = |part: &str| format!("{part}.bias");
    let has_bias = checkpoint.has(&bias(parts[0]));
    let all = outputs * parts.len();
    let mut layer = backend
        .linear_weights(all, inputs, dtype, has_bias)
        .unwrap();
    for (index, part) in parts.iter().enumerate() {
        let (first, bytes) = (index * outputs, checkpoint.bytes(&weight(part)));
        backend
            .set_rows(&mut layer, first, bytes, Dtype::F32)
            .unwrap();
        if has_bias {
            let bytes = checkpoint.bytes(&bias(part));
            backend
                .set_bias(&mut layer, first, bytes, Dtype::F32)
                .unwrap();
        }
    }
    layer
}

fn fixture(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../test/fixtures")
        .join(folder)
}

fn assert_within(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (a - e).abs() <= tolerance,
            "element {index} of {name}: {a} instead of {e}"
        );
    }
}

/// Runs fixtures with fused and with eager attention.
fn check<B: Subject>(
    backend: &mut B,
    fixtures: &[(&str, Activation, usize, (usize, usize))],
    dtype: Dtype,
    tolerance: f32,
) {
    for &case in fixtures {
        let expected = Tensors::open(fixture(case.0).join("expected.safetensors"));
        for eager in [false, true] {
            println!("{} as {}, eager: {eager}", case.0, dtype.name());
            Model::new(backend, case, dtype, eager).check(backend, &expected, tolerance);
        }
    }
}

/// The CPU's int8 layers multiply bytes, like GPUs with packed dot products.
#[test]
fn the_cpu_matches_the_reference() {
    check(&mut Cpu, &FIXTURES, Dtype::F32, 1e-4);
    for (dtype, tolerance) in [(Dtype::F16, 5.4e-3), (Dtype::BF16, 4e-2), (Dtype::I8, 8e-2)] {
        check(&mut Cpu, &FIXTURES[..3], dtype, tolerance);
    }
}

#[test]
fn every_fixture_matches_the_reference() {
    let Some(mut stream) = stream(RequestedLimits::WebGpu) else {
        return;
    };
    check(&mut stream, &FIXTURES, Dtype::F32, 1e-4);
}

#[test]
fn all_of_the_adapters_limits_give_the_same() {
    let Some(mut stream) = stream(RequestedLimits::Adapter) else {
        return;
    };
    check(&mut stream, &FIXTURES, Dtype::F32, 1e-4);
}

/// With and without subgroups.
#[test]
fn the_kernels_of_gpus_give_the_same() {
    for limits in [RequestedLimits::Adapter, RequestedLimits::WebGpu] {
        let Some(context) = context(limits) else {
            return;
        };
        let mut stream = Stream::new(Rc::new(context.as_a_gpu())).unwrap();
        check(&mut stream, &FIXTURES, Dtype::F32, 1e-4);
    }
}

/// Software adapters compute in float32, so that only weights are rounded. GPUs compute in float16 and bytes where
/// supported.
#[test]
fn narrow_weights_match_within_their_rounding() {
    for as_a_gpu in [false, true] {
        let Some(mut context) = context(RequestedLimits::Adapter) else {
            return;
        };
        if as_a_gpu {
            context = context.as_a_gpu();
        }
        let mut stream = Stream::new(Rc::new(context)).unwrap();
        for (dtype, tolerance) in [(Dtype::F16, 5.4e-3), (Dtype::BF16, 4e-2), (Dtype::I8, 8e-2)] {
            check(&mut stream, &FIXTURES[..3], dtype, tolerance);
        }
    }
}

#[test]
fn a_layer_is_seven_dispatches_and_its_memory_returns() {
    let Some(mut stream) = stream(RequestedLimits::WebGpu) else {
        return;
    };
    let expected = Tensors::open(fixture("tiny").join("expected.safetensors"));
    let model = Model::new(&mut stream, FIXTURES[0], Dtype::F32, false);
    let x = model.embed(&mut stream, &expected);
    let before = (stream.memory(), stream.dispatches());
    drop(model.layer(&mut stream, &x, 0));
    assert_eq!(stream.dispatches(), before.1 + 7);
    assert_eq!(stream.memory().live, before.0.live);
    let reserved = stream.memory().reserved;
    for index in 0..30 {
        drop(model.layer(&mut stream, &x, index % LAYERS));
    }
    assert_eq!(stream.memory().reserved, reserved);
}
