//! A ViT-MSN with random weights, for the examples.

use vit_msn_gpu::{
    GpuLinear, GpuTensor, Pooling, Stored, Stream, embed_tokens, layer_norm, layer_norm_for,
    linear, linear_for, patch_embed, pool, scaled_dot_product_attention_for,
};
use vit_msn_tensor::{Activation, Dtype, Result};

const CLASSES: usize = 1000;

/// A model's dimensions.
pub struct Size {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
}

struct Layer {
    qkv: GpuLinear,
    output: GpuLinear,
    up: GpuLinear,
    down: GpuLinear,
}

/// A model.
pub struct Model {
    size: Size,
    patches: GpuLinear,
    cls: GpuTensor,
    positions: GpuTensor,
    ones: GpuTensor,
    layers: Vec<Layer>,
    classifier: GpuLinear,
}

pub fn random(count: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| scale * next()).collect()
}

fn layer(stream: &mut Stream, outputs: usize, inputs: usize, dtype: Dtype) -> Result<GpuLinear> {
    let mut layer = GpuLinear::new(stream, outputs, inputs, dtype, true)?;
    let weight = random(outputs * inputs, 0.05);
    layer.set_rows(stream, 0, Dtype::F32, &Dtype::F32.encode(&weight)?)?;
    layer.set_bias(stream, 0, Dtype::F32, &vec![0; 4 * outputs])?;
    Ok(layer)
}

/// A layer's result in the format that every op reads.
fn linear_of(
    stream: &mut Stream,
    x: &Stored,
    layer: &GpuLinear,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    match linear_for(
        stream,
        x.into(),
        layer,
        Activation::Identity,
        residual,
        None,
    )? {
        Stored::Wide(y) => Ok(y),
        Stored::Halves(_) => unreachable!("no layer was named as its reader"),
    }
}

impl Model {
    pub fn new(stream: &mut Stream, size: Size, image: usize, dtype: Dtype) -> Result<Self> {
        let width = size.width;
        let tokens = 1 + (image / size.patch) * (image / size.patch);
        let around = if dtype == Dtype::I8 {
            Dtype::F32
        } else {
            dtype
        };
        let layers = (0..size.layers)
            .map(|_| {
                Ok(Layer {
                    qkv: layer(stream, 3 * width, width, dtype)?,
                    output: layer(stream, width, width, dtype)?,
                    up: layer(stream, 4 * width, width, dtype)?,
                    down: layer(stream, width, 4 * width, dtype)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            patches: layer(stream, width, 3 * size.patch * size.patch, around)?,
            cls: stream.upload(&random(width, 1.0), &[width])?,
            positions: stream.upload(&random(tokens * width, 1.0), &[tokens, width])?,
            ones: stream.upload(&vec![1.0; width], &[width])?,
            classifier: layer(stream, CLASSES, width, around)?,
            layers,
            size,
        })
    }

    pub fn forward(&self, stream: &mut Stream, pixels: &GpuTensor) -> Result<GpuTensor> {
        use Activation::{Gelu, Identity};
        let norm = |stream: &mut Stream, x: &GpuTensor, reader: &GpuLinear| {
            layer_norm_for(stream, x, &self.ones, &self.ones, 1e-6, Some(reader))
        };
        let patches = patch_embed(
            stream,
            pixels,
            &self.patches,
            (self.size.patch, self.size.patch),
        )?;
        let mut x = embed_tokens(stream, &patches, &self.cls, &self.positions, None)?;
        drop(patches);
        for layer in &self.layers {
            let normed = norm(stream, &x, &layer.qkv)?;
            let qkv = linear_of(stream, &normed, &layer.qkv, None)?;
            drop(normed);
            let context = scaled_dot_product_attention_for(
                stream,
                &qkv,
                self.size.heads,
                Some(&layer.output),
            )?;
            drop(qkv);
            x = linear_of(stream, &context, &layer.output, Some(&x))?;
            drop(context);
            let normed = norm(stream, &x, &layer.up)?;
            let reader = Some(&layer.down);
            let hidden = linear_for(stream, (&normed).into(), &layer.up, Gelu, None, reader)?;
            drop(normed);
            x = linear_of(stream, &hidden, &layer.down, Some(&x))?;
        }
        let x = layer_norm(stream, &x, &self.ones, &self.ones, 1e-6)?;
        let cls = pool(stream, &x, Pooling::Cls)?;
        linear(stream, &cls, &self.classifier, Identity, None)
    }
}
