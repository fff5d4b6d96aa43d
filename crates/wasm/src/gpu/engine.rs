//! The engine's ops on handles: looks handles up, records the kernel and keeps its result.

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use vit_msn_gpu as gpu;
use vit_msn_gpu::{
    Context, GpuLinear, GpuPicture, LayerShape, PicturePlan, Pooling, Stream, TokenMask,
};
use vit_msn_tensor::{Activation, Dropout, Dtype, Error, Result, check_len};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen::JsCast;
use wasm_bindgen::JsValue;

use crate::handles::Handles;

/// Everything that one WebAssembly instance holds on its device.
pub struct Engine {
    pub(super) stream: Stream,
    /// What is alive.
    pub handles: Handles,
}

impl Engine {
    /// An engine on an open device.
    pub fn new(context: Context) -> Result<Self> {
        Ok(Self {
            stream: Stream::new(Rc::new(context))?,
            handles: Handles::default(),
        })
    }

    /// One on which nothing runs: ops ask the device for their pipelines and no more.
    pub fn plan(&self) -> Result<Self> {
        Ok(Self {
            stream: Stream::planning(Rc::clone(self.stream.context()))?,
            handles: Handles::default(),
        })
    }

    /// Names the op of the calls from here on.
    pub fn begin_op(&self, name: &'static str) {
        self.stream.context().begin_op(name);
    }

    /// Pixel values of pictures that are still to be put in.
    pub fn pixels(&mut self, dims: &[usize]) -> Result<u32> {
        let pixels = gpu::empty_pixels(&mut self.stream, dims)?;
        self.handles.add_tensor(pixels)
    }

    /// A picture whose bytes come a stretch at a time, so that this instance's memory doesn't grow by all of them.
    pub fn upload_picture(
        &mut self,
        length: usize,
        size: [usize; 3],
        bytes: impl Fn(Range<usize>) -> Vec<u8>,
    ) -> Result<GpuPicture> {
        const STRETCH: usize = 1 << 20;
        check_len("The picture", length, &size)?;
        let picture = GpuPicture::new(&self.stream, size)?;
        for start in (0..length).step_by(STRETCH) {
            let stretch = bytes(start..length.min(start + STRETCH));
            picture.write(&mut self.stream, start, &stretch)?;
        }
        Ok(picture)
    }

    /// A picture from a page's own texture. There are none but in pages.
    #[cfg(target_arch = "wasm32")]
    pub fn copy_texture(&mut self, texture: JsValue, size: [u32; 2]) -> Result<GpuPicture> {
        GpuPicture::from_page(&mut self.stream, texture.unchecked_into(), size)
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub fn copy_texture(&mut self, _: JsValue, _: [u32; 2]) -> Result<GpuPicture> {
        Err(Error::Unsupported("There is no page here.".to_string()))
    }

    /// Makes picture `index` of pixel values.
    pub fn preprocess(
        &mut self,
        picture: &GpuPicture,
        plan: PicturePlan<'_>,
        pixels: u32,
        index: usize,
    ) -> Result<()> {
        let pixels = self.handles.tensor(pixels)?;
        gpu::preprocess(&mut self.stream, picture, &plan, pixels, index)
    }

    /// Hands what was recorded to the device.
    pub fn submit(&mut self) -> Result<()> {
        self.stream.submit()
    }

    /// Waits for the errors of all calls so far.
    pub fn settle(&mut self) -> Result<impl Future<Output = Result<()>> + use<>> {
        Ok(self.stream.settle())
    }

    /// Kernels recorded so far.
    pub fn dispatches(&self) -> u64 {
        self.stream.dispatches()
    }

    /// Times every kernel from here on.
    pub fn start_profile(&mut self) -> Result<()> {
        self.stream.start_profile()
    }

    /// Nanoseconds of each kernel since the start of the profile; NaN where the device has no clock.
    pub fn finish_profile(&mut self) -> Result<impl Future<Output = Result<Vec<f64>>> + use<>> {
        let pending = self.stream.finish_profile()?;
        Ok(async move {
            let ops = pending.await?;
            Ok(ops
                .iter()
                .map(|op| op.nanoseconds.unwrap_or(f64::NAN))
                .collect())
        })
    }

    /// The outputs and inputs of a linear layer.
    pub fn linear_sizes(&self, weights: u32) -> Result<Vec<u32>> {
        let weights = self.handles.linear(weights)?;
        let sizes = [weights.out_features(), weights.in_features()];
        Ok(sizes.map(|size| size as u32).to_vec())
    }

    /// The type that a linear layer's weight is kept in.
    pub fn linear_dtype(&self, weights: u32) -> Result<String> {
        Ok(self.handles.linear(weights)?.dtype().name().to_string())
    }

    /// The tiles that can compute a layer, first the one that is taken unless another is chosen.
    pub fn linear_tiles(&self, shape: LayerShape) -> Vec<u32> {
        let sides = gpu::linear_tiles(&self.stream, shape);
        sides.into_iter().map(|side| side as u32).collect()
    }

    /// Computes layers of this shape by this tile from here on.
    pub fn choose_linear_tile(&mut self, shape: LayerShape, side: usize) -> Result<()> {
        gpu::choose_linear_tile(&mut self.stream, shape, side)
    }

    /// Runs a layer for its time.
    pub fn run_linear(&mut self, weights: u32, rows: usize, times: usize) -> Result<()> {
        let weights = self.handles.linear(weights)?;
        gpu::run_linear(&mut self.stream, weights, rows, times)
    }

    /// Bytes of device memory, used or kept for the next tensors.
    pub fn reserved(&self) -> u64 {
        self.stream.memory().reserved
    }

    /// A tensor from values.
    pub fn tensor(&mut self, data: Vec<f32>, dims: &[usize]) -> Result<u32> {
        let tensor = self.stream.upload(&data, dims)?;
        self.handles.add_tensor(tensor)
    }

    /// A checkpoint's raw values, rounded through `dtype` and widened. Checkpoints give tokens and positions a batch of
    /// one, which no op wants.
    pub fn parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<u32> {
        let dims = without_leading_ones(dims);
        let tensor = self.stream.upload_parameter(bytes, from, dtype, dims)?;
        self.handles.add_tensor(tensor)
    }

    /// An empty linear layer.
    pub fn linear_weights(
        &mut self,
        outputs: usize,
        inputs: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<u32> {
        let weights = GpuLinear::new(&mut self.stream, outputs, inputs, dtype, has_bias)?;
        self.handles.add_linear(weights)
    }

    /// Uploads whole rows of a weight.
    pub fn set_rows(&mut self, weights: u32, row: usize, bytes: &[u8], from: Dtype) -> Result<()> {
        let weights = self.handles.linear_mut(weights)?;
        weights.set_rows(&mut self.stream, row, from, bytes)
    }

    /// Uploads rows that are quantised already.
    pub fn set_quantised_rows(
        &mut self,
        weights: u32,
        row: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()> {
        let weights = self.handles.linear_mut(weights)?;
        weights.set_quantised_rows(&mut self.stream, row, bytes, scales)
    }

    /// Sets bias elements.
    pub fn set_bias(
        &mut self,
        weights: u32,
        offset: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        let weights = self.handles.linear_mut(weights)?;
        weights.set_bias(&mut self.stream, offset, from, bytes)
    }

    /// activation(x · weightᵀ + bias) + residual, of what may be kept for this layer, and kept for the one that alone reads the
    /// result.
    pub fn linear(
        &mut self,
        x: u32,
        weights: u32,
        activation: Activation,
        residual: Option<u32>,
        reader: Option<u32>,
    ) -> Result<u32> {
        let (x, weights) = (self.handles.activations(x)?, self.handles.linear(weights)?);
        let residual = residual
            .map(|handle| self.handles.tensor(handle))
            .transpose()?;
        let reader = self.handles.reader(reader)?;
        let y = gpu::linear_for(&mut self.stream, x, weights, activation, residual, reader)?;
        self.handles.add_stored(y)
    }

    /// Layer normalisation of the last dimension, kept for the layer that alone reads it.
    pub fn layer_norm(
        &mut self,
        x: u32,
        weight: u32,
        bias: u32,
        eps: f32,
        reader: Option<u32>,
    ) -> Result<u32> {
        let [x, weight, bias] = [
            self.handles.tensor(x)?,
            self.handles.tensor(weight)?,
            self.handles.tensor(bias)?,
        ];
        let reader = self.handles.reader(reader)?;
        let y = gpu::layer_norm_for(&mut self.stream, x, weight, bias, eps, reader)?;
        self.handles.add_stored(y)
    }

    /// Fused attention, kept for the layer that alone reads it.
    pub fn scaled_dot_product_attention(
        &mut self,
        qkv: u32,
        heads: usize,
        reader: Option<u32>,
    ) -> Result<u32> {
        let (qkv, reader) = (self.handles.tensor(qkv)?, self.handles.reader(reader)?);
        let y = gpu::scaled_dot_product_attention_for(&mut self.stream, qkv, heads, reader)?;
        self.handles.add_stored(y)
    }

    /// Attention by its definition: (context, probabilities).
    pub fn eager_attention(&mut self, qkv: u32, heads: usize) -> Result<(u32, u32)> {
        self.eager_attention_dropout(qkv, heads, None)
    }

    /// The same with values weighted by the probabilities after dropout: (context, probabilities before it).
    pub fn eager_attention_dropout(
        &mut self,
        qkv: u32,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<(u32, u32)> {
        let qkv = self.handles.tensor(qkv)?;
        let (context, probs) = match dropout {
            Some(dropout) => gpu::eager_attention_dropout(&mut self.stream, qkv, heads, dropout)?,
            None => gpu::eager_attention(&mut self.stream, qkv, heads)?,
        };
        let context = self.handles.add_tensor(context)?;
        Ok((context, self.handles.add_tensor(probs)?))
    }

    /// Pictures to patch embeddings.
    pub fn patch_embed(
        &mut self,
        pixels: u32,
        projection: u32,
        patch: (usize, usize),
    ) -> Result<u32> {
        let (pixels, projection) = (
            self.handles.tensor(pixels)?,
            self.handles.linear(projection)?,
        );
        let y = gpu::patch_embed(&mut self.stream, pixels, projection, patch)?;
        self.handles.add_tensor(y)
    }

    /// Patch embeddings to tokens.
    pub fn embed_tokens(
        &mut self,
        patches: u32,
        cls: u32,
        positions: u32,
        masked: Option<(Vec<u8>, u32)>,
    ) -> Result<u32> {
        let [patches, cls, positions] = [
            self.handles.tensor(patches)?,
            self.handles.tensor(cls)?,
            self.handles.tensor(positions)?,
        ];
        let mask = match &masked {
            Some((masked, token)) => {
                let values: Vec<_> = masked.iter().map(|&m| f32::from(m)).collect();
                let &[batch, count, _] = patches.dims() else {
                    return Err(Error::InvalidArgument(
                        "The patch embeddings must have 3 dimensions.".to_string(),
                    ));
                };
                let masked = self.stream.upload(&values, &[batch, count])?;
                Some((masked, self.handles.tensor(*token)?))
            }
            None => None,
        };
        let mask = mask
            .as_ref()
            .map(|(masked, token)| TokenMask { masked, token });
        let y = gpu::embed_tokens(&mut self.stream, patches, cls, positions, mask)?;
        self.handles.add_tensor(y)
    }

    /// The CLS token and the chosen patches of each picture.
    pub fn take_tokens(&mut self, x: u32, patches: &[u32], visible: usize) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let y = gpu::take_tokens(&mut self.stream, x, patches, visible)?;
        self.handles.add_tensor(y)
    }

    /// Position encodings for another grid: [1, 1 + rows · columns, D].
    pub fn interpolate_positions(
        &mut self,
        positions: u32,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Result<u32> {
        let positions = self.handles.tensor(positions)?;
        let y = gpu::interpolate_positions(&mut self.stream, positions, from, to)?;
        self.handles.add_tensor(y)
    }

    /// One vector a picture.
    pub fn pool(&mut self, x: u32, kind: &str) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let y = gpu::pool(&mut self.stream, x, pooling(kind)?)?;
        self.handles.add_tensor(y)
    }

    /// Mean cross-entropy.
    pub fn cross_entropy(&mut self, logits: u32, labels: &[i32]) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let loss = gpu::cross_entropy(&mut self.stream, logits, labels)?;
        self.handles.add_tensor(loss)
    }

    /// Mean squared error.
    pub fn mse_loss(&mut self, x: u32, target: u32) -> Result<u32> {
        let (x, target) = (self.handles.tensor(x)?, self.handles.tensor(target)?);
        let loss = gpu::mse_loss(&mut self.stream, x, target)?;
        self.handles.add_tensor(loss)
    }

    /// Mean binary cross-entropy with logits.
    pub fn bce_with_logits(&mut self, logits: u32, target: u32) -> Result<u32> {
        let (logits, target) = (self.handles.tensor(logits)?, self.handles.tensor(target)?);
        let loss = gpu::bce_with_logits(&mut self.stream, logits, target)?;
        self.handles.add_tensor(loss)
    }

    /// A copy of a tensor's values, recorded when this returns: to be submitted before it is waited for.
    pub fn read(&mut self, x: u32) -> Result<impl Future<Output = Result<Vec<f32>>> + use<>> {
        let x = self.handles.tensor(x)?;
        self.stream.record_read(x)
    }

    /// Rows of a weight as raw values of its storage type.
    pub fn get_rows(
        &mut self,
        weights: u32,
        row: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_rows(&mut self.stream, row, rows)
    }

    /// The float32 scales of int8 rows.
    pub fn get_scales(
        &mut self,
        weights: u32,
        row: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_scales(&mut self.stream, row, rows)
    }

    /// Bias elements as raw values of the storage type.
    pub fn get_bias(
        &mut self,
        weights: u32,
        offset: usize,
        count: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_bias(&mut self.stream, offset, count)
    }
}

/// The pooling of this name.
pub fn pooling(kind: &str) -> Result<Pooling> {
    match kind {
        "cls" => Ok(Pooling::Cls),
        "mean" => Ok(Pooling::Mean),
        _ => Err(Error::InvalidArgument(format!(
            "Unknown pooling {kind:?}: use \"cls\" or \"mean\"."
        ))),
    }
}

fn without_leading_ones(dims: &[usize]) -> &[usize] {
    match dims {
        [1, rest @ ..] if !rest.is_empty() => without_leading_ones(rest),
        dims => dims,
    }
}
