//! A whole ViT-MSN from these ops, against the reference's logits. Without a GPU adapter it prints that it is skipped;
//! with VIT_MSN_REQUIRE_GPU=1 it fails.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use safetensors::SafeTensors;
use vit_msn_gpu::{
    Context, ContextOptions, GpuTensor, Pooling, Stream, attention, embed_tokens, layer_norm,
    linear, patch_embed, pool,
};
use vit_msn_tensor::{Activation, Dtype};

const LAYERS: usize = 3;
const HEADS: usize = 4;
const EPS: f32 = 1e-6;

type Values = HashMap<String, (Vec<f32>, Vec<usize>)>;

fn stream() -> Option<Stream> {
    let options = ContextOptions {
        allow_software: true,
        ..Default::default()
    };
    match pollster::block_on(Context::new(options)) {
        Ok(context) => Some(Stream::new(Rc::new(context)).unwrap()),
        Err(error) if std::env::var_os("VIT_MSN_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("{error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn load(name: &str) -> Values {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/fixtures/tiny");
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
        .map(|(key, view)| {
            let mut values = vec![0.0; view.data().len() / 4];
            Dtype::F32.decode(view.data(), &mut values).unwrap();
            (key.to_string(), (values, view.shape().to_vec()))
        })
        .collect()
}

struct Model {
    parameters: HashMap<String, GpuTensor>,
}

impl Model {
    /// Uploads the checkpoint, with each layer's queries, keys and values as one weight and without dimensions of 1 in
    /// front.
    fn new(stream: &mut Stream, mut checkpoint: Values) -> Self {
        for layer in 0..LAYERS {
            let prefix = format!("vit.encoder.layer.{layer}.attention");
            for kind in ["weight", "bias"] {
                let parts = ["query", "key", "value"].map(|part| {
                    checkpoint
                        .remove(&format!("{prefix}.attention.{part}.{kind}"))
                        .unwrap()
                });
                let mut dims = parts[0].1.clone();
                dims[0] *= 3;
                let values = parts.into_iter().flat_map(|(values, _)| values).collect();
                checkpoint.insert(format!("{prefix}.qkv.{kind}"), (values, dims));
            }
        }
        let parameters = checkpoint
            .into_iter()
            .map(|(key, (values, dims))| {
                let dims: Vec<_> = dims.into_iter().skip_while(|&dim| dim == 1).collect();
                (key, stream.upload(&values, &dims).unwrap())
            })
            .collect();
        Self { parameters }
    }

    fn pair(&self, key: &str) -> (&GpuTensor, &GpuTensor) {
        (
            &self.parameters[&format!("{key}.weight")],
            &self.parameters[&format!("{key}.bias")],
        )
    }

    fn norm(&self, stream: &mut Stream, x: &GpuTensor, key: &str) -> GpuTensor {
        let (weight, bias) = self.pair(key);
        layer_norm(stream, x, weight, bias, EPS).unwrap()
    }

    fn linear(
        &self,
        stream: &mut Stream,
        x: &GpuTensor,
        key: &str,
        activation: Activation,
        residual: Option<&GpuTensor>,
    ) -> GpuTensor {
        let (weight, bias) = self.pair(key);
        linear(stream, x, weight, bias, activation, residual).unwrap()
    }

    fn embed(&self, stream: &mut Stream, pixels: &GpuTensor) -> GpuTensor {
        let (weight, bias) = self.pair("vit.embeddings.patch_embeddings.projection");
        let patches = patch_embed(stream, pixels, weight, bias).unwrap();
        let cls = &self.parameters["vit.embeddings.cls_token"];
        let positions = &self.parameters["vit.embeddings.position_embeddings"];
        embed_tokens(stream, &patches, cls, positions, None).unwrap()
    }

    fn layer(&self, stream: &mut Stream, x: &GpuTensor, index: usize) -> GpuTensor {
        use Activation::{Gelu, Identity};
        let key = |name: &str| format!("vit.encoder.layer.{index}.{name}");
        let normed = self.norm(stream, x, &key("layernorm_before"));
        let qkv = self.linear(stream, &normed, &key("attention.qkv"), Identity, None);
        let context = attention(stream, &qkv, HEADS).unwrap();
        let output = key("attention.output.dense");
        let x = self.linear(stream, &context, &output, Identity, Some(x));
        let normed = self.norm(stream, &x, &key("layernorm_after"));
        let hidden = self.linear(stream, &normed, &key("intermediate.dense"), Gelu, None);
        self.linear(stream, &hidden, &key("output.dense"), Identity, Some(&x))
    }
}

fn assert_within(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (a - e).abs() <= tolerance,
            "element {index}: {a} instead of {e}"
        );
    }
}

#[test]
fn the_tiny_model_matches_the_reference() {
    let Some(mut stream) = stream() else { return };
    let expected = load("expected.safetensors");
    let model = Model::new(&mut stream, load("model.safetensors"));
    let read =
        |stream: &mut Stream, x: &GpuTensor| pollster::block_on(stream.read(x).unwrap()).unwrap();
    let (pixels, dims) = &expected["in.pixel_values"];
    let pixels = stream.upload(pixels, dims).unwrap();
    let mut x = model.embed(&mut stream, &pixels);
    for index in 0..=LAYERS {
        let hidden = &expected[&format!("out.hidden_states.{index}")].0;
        assert_within(&read(&mut stream, &x), hidden, 1e-4);
        if index < LAYERS {
            x = model.layer(&mut stream, &x, index);
        }
    }
    let x = model.norm(&mut stream, &x, "vit.layernorm");
    let cls = pool(&mut stream, &x, Pooling::Cls).unwrap();
    let logits = model.linear(&mut stream, &cls, "classifier", Activation::Identity, None);
    assert_within(&read(&mut stream, &logits), &expected["out.logits"].0, 1e-4);
}

#[test]
fn a_layer_is_seven_dispatches_and_its_memory_returns() {
    let Some(mut stream) = stream() else { return };
    let model = Model::new(&mut stream, load("model.safetensors"));
    let (pixels, dims) = &load("expected.safetensors")["in.pixel_values"];
    let pixels = stream.upload(pixels, dims).unwrap();
    let x = model.embed(&mut stream, &pixels);
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
