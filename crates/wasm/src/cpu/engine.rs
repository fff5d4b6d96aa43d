//! The engine's ops on handles: takes shapes apart, allocates the result and calls the kernel.

use vit_msn_cpu as cpu;
use vit_msn_cpu::{
    AttentionShape, EmbeddingShape, PackedLinear, PatchMask, PatchShape, SelectionShape,
};
use vit_msn_tensor::{Activation, Dropout, Dtype, Error, Result, Tensor, numel, try_vec};

use crate::handles::Handles;

/// Everything that one WebAssembly instance holds.
#[derive(Default)]
pub struct Engine {
    /// What is alive.
    pub handles: Handles,
}

impl Engine {
    /// A tensor from values.
    pub fn tensor(&mut self, data: Vec<f32>, dims: &[usize]) -> Result<u32> {
        self.handles.add_tensor(Tensor::from_vec(dims, data)?)
    }

    /// A checkpoint's raw values, rounded through `dtype` and widened.
    pub fn parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<u32> {
        let mut tensor = Tensor::zeros(dims)?;
        from.decode_rounded(bytes, dtype, tensor.data_mut(), |index| {
            format!("Element {index}")
        })?;
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
        self.handles
            .add_linear(PackedLinear::new(outputs, inputs, dtype, has_bias)?)
    }

    /// Packs whole rows of a weight.
    pub fn set_rows(&mut self, weights: u32, row: usize, bytes: &[u8], from: Dtype) -> Result<()> {
        self.handles.linear_mut(weights)?.set_rows(row, from, bytes)
    }

    /// Packs rows that are quantised already.
    pub fn set_quantised_rows(
        &mut self,
        weights: u32,
        row: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()> {
        self.handles
            .linear_mut(weights)?
            .set_quantised_rows(row, bytes, scales)
    }

    /// Sets bias elements.
    pub fn set_bias(
        &mut self,
        weights: u32,
        offset: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        self.handles
            .linear_mut(weights)?
            .set_bias(offset, from, bytes)
    }

    /// Bias elements as raw values of the storage type, float32 beside int8 weights.
    pub fn get_bias(&self, weights: u32, offset: usize, count: usize) -> Result<Vec<u8>> {
        let weights = self.handles.linear(weights)?;
        let bytes = weights.get_bias()?.unwrap_or_default();
        let size = weights.bias_dtype().size();
        let range = offset.checked_mul(size).zip(
            offset
                .checked_add(count)
                .and_then(|end| end.checked_mul(size)),
        );
        let part = range.and_then(|(start, end)| bytes.get(start..end));
        part.map(<[u8]>::to_vec).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "The bias has no elements {offset} to {offset} + {count}."
            ))
        })
    }

    /// activation(x · weightᵀ + bias) + residual.
    pub fn linear(
        &mut self,
        x: u32,
        weights: u32,
        activation: Activation,
        residual: Option<u32>,
    ) -> Result<u32> {
        let (x, weights) = (self.handles.tensor(x)?, self.handles.linear(weights)?);
        let residual = residual
            .map(|handle| self.handles.tensor(handle))
            .transpose()?;
        let dims = with_last(x.dims(), weights.out_features())?;
        let mut out = Tensor::zeros(&dims)?;
        cpu::linear(
            x.data(),
            weights,
            activation,
            residual.map(Tensor::data),
            out.data_mut(),
        )?;
        self.handles.add_tensor(out)
    }

    /// Layer normalisation of the last dimension.
    pub fn layer_norm(&mut self, x: u32, weight: u32, bias: u32, eps: f32) -> Result<u32> {
        let [x, weight, bias] = [
            self.handles.tensor(x)?,
            self.handles.tensor(weight)?,
            self.handles.tensor(bias)?,
        ];
        let mut out = Tensor::zeros(x.dims())?;
        cpu::layer_norm(x.data(), weight.data(), bias.data(), eps, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Fused attention.
    pub fn scaled_dot_product_attention(&mut self, qkv: u32, heads: usize) -> Result<u32> {
        let qkv = self.handles.tensor(qkv)?;
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(&[shape.batch, shape.tokens, heads * shape.head_dim])?;
        cpu::scaled_dot_product_attention(qkv.data(), shape, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Attention by its definition: (context, probabilities).
    pub fn eager_attention(&mut self, qkv: u32, heads: usize) -> Result<(u32, u32)> {
        self.eager_attention_dropout(qkv, heads, None)
    }

    /// The same, with dropout of the probabilities where it is given: (context, probabilities before it).
    pub fn eager_attention_dropout(
        &mut self,
        qkv: u32,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<(u32, u32)> {
        let qkv = self.handles.tensor(qkv)?;
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(&[shape.batch, shape.tokens, heads * shape.head_dim])?;
        let dims = [shape.batch, heads, shape.tokens, shape.tokens];
        let mut probs = Tensor::zeros(&dims)?;
        let mut dropped = dropout.map(|_| Tensor::zeros(&dims)).transpose()?;
        let dropout = dropout.zip(dropped.as_mut().map(Tensor::data_mut));
        cpu::eager_attention_dropout(qkv.data(), shape, dropout, probs.data_mut(), out.data_mut())?;
        let context = self.handles.add_tensor(out)?;
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
        let [batch, channels, height, width] = rank(pixels.dims(), "pixel_values")?;
        let (patch_height, patch_width) = patch;
        let shape = PatchShape {
            batch,
            channels,
            height,
            width,
            patch_height,
            patch_width,
        };
        let (rows, columns) = shape.grid()?;
        let mut out = Tensor::zeros(&[batch, numel(&[rows, columns])?, projection.out_features()])?;
        cpu::patch_embed(pixels.data(), shape, projection, out.data_mut())?;
        self.handles.add_tensor(out)
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
        let [batch, count, width] = rank(patches.dims(), "The patch embeddings")?;
        let mask = match &masked {
            Some((masked, token)) => Some(PatchMask {
                masked,
                token: self.handles.tensor(*token)?.data(),
            }),
            None => None,
        };
        let shape = EmbeddingShape {
            batch,
            patches: count,
            width,
        };
        let mut out = Tensor::zeros(&[batch, 1 + count, width])?;
        cpu::embed_tokens(
            patches.data(),
            shape,
            cls.data(),
            positions.data(),
            mask,
            out.data_mut(),
        )?;
        self.handles.add_tensor(out)
    }

    /// The CLS token and the chosen patches of each picture.
    pub fn take_tokens(&mut self, x: u32, patches: &[u32], visible: usize) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let [batch, tokens, width] = rank(x.dims(), "The tokens")?;
        let shape = SelectionShape {
            batch,
            tokens,
            visible,
            width,
        };
        let mut out = Tensor::zeros(&[batch, visible.saturating_add(1), width])?;
        cpu::take_tokens(x.data(), shape, patches, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// Position encodings for another grid: [1, 1 + rows · columns, D].
    pub fn interpolate_positions(
        &mut self,
        positions: u32,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Result<u32> {
        let positions = self.handles.tensor(positions)?;
        let width = positions.dims().last().copied().unwrap_or(0);
        let mut out = Tensor::zeros(&[1, 1 + numel(&[to.0, to.1])?, width])?;
        cpu::interpolate_positions(positions.data(), from, to, width, out.data_mut())?;
        self.handles.add_tensor(out)
    }

    /// One vector a picture.
    pub fn pool(&mut self, x: u32, kind: &str) -> Result<u32> {
        let x = self.handles.tensor(x)?;
        let [batch, tokens, width] = rank(x.dims(), "The hidden states")?;
        let mut out = Tensor::zeros(&[batch, width])?;
        match kind {
            "cls" => cpu::pool_cls(x.data(), batch, tokens, width, out.data_mut())?,
            "mean" => cpu::pool_mean(x.data(), batch, tokens, width, out.data_mut())?,
            _ => {
                return Err(Error::InvalidArgument(format!(
                    "Unknown pooling {kind:?}: use \"cls\" or \"mean\"."
                )));
            }
        }
        self.handles.add_tensor(out)
    }

    /// Mean cross-entropy.
    pub fn cross_entropy(&mut self, logits: u32, labels: &[i32]) -> Result<u32> {
        let logits = self.handles.tensor(logits)?;
        let [_, classes] = rank(logits.dims(), "The logits")?;
        let loss = cpu::cross_entropy(logits.data(), classes, labels)?;
        self.scalar(loss)
    }

    /// Mean squared error.
    pub fn mse_loss(&mut self, x: u32, target: u32) -> Result<u32> {
        let loss = cpu::mse_loss(
            self.handles.tensor(x)?.data(),
            self.handles.tensor(target)?.data(),
        )?;
        self.scalar(loss)
    }

    /// Mean binary cross-entropy with logits.
    pub fn bce_with_logits(&mut self, logits: u32, target: u32) -> Result<u32> {
        let loss = cpu::bce_with_logits(
            self.handles.tensor(logits)?.data(),
            self.handles.tensor(target)?.data(),
        )?;
        self.scalar(loss)
    }

    /// A copy of a tensor's values.
    pub fn read(&self, x: u32) -> Result<Vec<f32>> {
        let data = self.handles.tensor(x)?.data();
        let mut copy = try_vec(data.len())?;
        copy.copy_from_slice(data);
        Ok(copy)
    }

    pub(crate) fn scalar(&mut self, value: f64) -> Result<u32> {
        self.tensor(vec![value as f32], &[1])
    }
}

pub(crate) fn attention_shape(dims: &[usize], heads: usize) -> Result<AttentionShape> {
    let [batch, tokens, width] = rank(dims, "qkv")?;
    let channels = heads
        .checked_mul(3)
        .filter(|&parts| parts > 0 && width.is_multiple_of(parts))
        .ok_or_else(|| {
            Error::InvalidArgument(format!(
                "qkv of width {width} can't be cut into queries, keys and values of {heads} heads."
            ))
        })?;
    Ok(AttentionShape {
        batch,
        tokens,
        heads,
        head_dim: width / channels,
    })
}

pub(crate) fn rank<const N: usize>(dims: &[usize], what: &str) -> Result<[usize; N]> {
    dims.try_into().map_err(|_| {
        Error::InvalidArgument(format!(
            "{what} must have {N} dimensions, got the shape {dims:?}."
        ))
    })
}

pub(crate) fn with_last(dims: &[usize], last: usize) -> Result<Vec<usize>> {
    match dims.split_last() {
        Some((_, leading)) => Ok([leading, &[last]].concat()),
        None => Err(Error::InvalidArgument(
            "A linear layer takes at least one dimension.".to_string(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine_with(dims: &[usize]) -> (Engine, u32) {
        let mut engine = Engine::default();
        let handle = engine
            .tensor(vec![1.0; dims.iter().product()], dims)
            .unwrap();
        (engine, handle)
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors_and_leave_the_engine_usable() {
        let (mut engine, x) = engine_with(&[1, 2, 12]);
        assert_eq!(
            engine
                .scaled_dot_product_attention(x, 0)
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            engine
                .scaled_dot_product_attention(x, 5)
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            engine
                .scaled_dot_product_attention(x, usize::MAX)
                .unwrap_err()
                .code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            engine.cross_entropy(x, &[0]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            engine.pool(x, "max").unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        let out = engine.scaled_dot_product_attention(x, 2).unwrap();
        assert_eq!(engine.handles.tensor(out).unwrap().dims(), [1, 2, 4]);
        assert_eq!(engine.handles.live().0, 2);
    }

    #[test]
    fn parameters_must_be_finite_in_their_storage_type() {
        let mut engine = Engine::default();
        let bytes = 1e6f32.to_le_bytes();
        assert!(
            engine
                .parameter(&bytes, Dtype::F32, Dtype::BF16, &[1])
                .is_ok()
        );
        let error = engine
            .parameter(&bytes, Dtype::F32, Dtype::F16, &[1])
            .unwrap_err();
        assert_eq!(error.code(), "INVALID_CHECKPOINT");
        let error = engine
            .parameter(&f32::NAN.to_le_bytes(), Dtype::F32, Dtype::F32, &[1])
            .unwrap_err();
        assert_eq!(error.code(), "INVALID_CHECKPOINT");
    }

    #[test]
    fn bias_slices_are_checked() {
        let mut engine = Engine::default();
        let weights = engine.linear_weights(3, 2, Dtype::F32, true).unwrap();
        assert_eq!(engine.get_bias(weights, 1, 2).unwrap().len(), 8);
        assert_eq!(
            engine.get_bias(weights, 2, 2).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(
            engine.get_bias(weights, usize::MAX, 2).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }
}
