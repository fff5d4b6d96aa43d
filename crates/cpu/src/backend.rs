//! The CPU as a [`Backend`]: extracts dimensions from shapes, allocates results and calls the kernels.

use vit_msn_tensor::{
    Activation, AdamW, Backend, Dropout, Dtype, Error, Grid, Lars, MsnLoss, MsnTargets, Pooling,
    Result, Sgd, Tensor, check_len, numel,
};

use crate as cpu;
use crate::{
    AttentionShape, BatchNormGradients, BatchNormOutput, EmbeddingGradients, EmbeddingShape,
    LayerNormGradients, PackedLinear, PatchMask, PatchShape, SelectionShape,
};

/// The CPU backend. It is stateless: tensors live in memory, and threads belong to the process.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cpu;

impl Backend for Cpu {
    type Tensor = Tensor;
    type Linear = PackedLinear;
    type Input<'a> = &'a Tensor;
    type Output = Tensor;

    #[inline]
    fn tensor(&mut self, data: Vec<f32>, dims: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(dims, data)
    }

    #[inline]
    fn parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(dims)?;
        from.decode_rounded(bytes, dtype, tensor.data_mut(), |index| {
            format!("Element {index}")
        })?;
        Ok(tensor)
    }

    #[inline]
    fn linear_weights(
        &mut self,
        outputs: usize,
        inputs: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<PackedLinear> {
        PackedLinear::new(outputs, inputs, dtype, has_bias)
    }

    #[inline]
    fn set_rows(
        &mut self,
        weights: &mut PackedLinear,
        row: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        weights.set_rows(row, from, bytes)
    }

    #[inline]
    fn set_quantised_rows(
        &mut self,
        weights: &mut PackedLinear,
        row: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()> {
        weights.set_quantised_rows(row, bytes, scales)
    }

    #[inline]
    fn set_bias(
        &mut self,
        weights: &mut PackedLinear,
        offset: usize,
        bytes: &[u8],
        from: Dtype,
    ) -> Result<()> {
        weights.set_bias(offset, from, bytes)
    }

    #[inline]
    fn linear(
        &mut self,
        x: &Tensor,
        weights: &PackedLinear,
        activation: Activation,
        residual: Option<&Tensor>,
        _: Option<&PackedLinear>,
    ) -> Result<Tensor> {
        let mut out = Tensor::zeros(&with_last(x.dims(), weights.out_features())?)?;
        let residual = residual.map(Tensor::data);
        cpu::linear(x.data(), weights, activation, residual, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn layer_norm(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
        _: Option<&PackedLinear>,
    ) -> Result<Tensor> {
        let mut out = Tensor::zeros(x.dims())?;
        cpu::layer_norm(x.data(), weight.data(), bias.data(), eps, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn scaled_dot_product_attention(
        &mut self,
        qkv: &Tensor,
        heads: usize,
        _: Option<&PackedLinear>,
    ) -> Result<Tensor> {
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(&[shape.batch, shape.tokens, heads * shape.head_dim])?;
        cpu::scaled_dot_product_attention(qkv.data(), shape, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn eager_attention(
        &mut self,
        qkv: &Tensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<[Tensor; 2]> {
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(&[shape.batch, shape.tokens, heads * shape.head_dim])?;
        let dims = [shape.batch, heads, shape.tokens, shape.tokens];
        let mut probs = Tensor::zeros(&dims)?;
        let mut dropped = dropout.map(|_| Tensor::zeros(&dims)).transpose()?;
        let dropout = dropout.zip(dropped.as_mut().map(Tensor::data_mut));
        cpu::eager_attention_dropout(qkv.data(), shape, dropout, probs.data_mut(), out.data_mut())?;
        Ok([out, probs])
    }

    #[inline]
    fn patch_embed(
        &mut self,
        pixels: &Tensor,
        projection: &PackedLinear,
        patch: Grid,
    ) -> Result<Tensor> {
        let shape = patch_shape(pixels, patch)?;
        let (rows, columns) = shape.grid()?;
        let patches = numel(&[rows, columns])?;
        let mut out = Tensor::zeros(&[shape.batch, patches, projection.out_features()])?;
        cpu::patch_embed(pixels.data(), shape, projection, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn embed_tokens(
        &mut self,
        patches: &Tensor,
        cls: &Tensor,
        positions: &Tensor,
        mask: Option<(&[u8], &Tensor)>,
    ) -> Result<Tensor> {
        let [batch, count, width] = rank(patches.dims(), "The patch embeddings")?;
        let mask = mask.map(|(masked, token)| PatchMask {
            masked,
            token: token.data(),
        });
        let shape = EmbeddingShape {
            batch,
            patches: count,
            width,
        };
        let mut out = Tensor::zeros(&[batch, 1 + count, width])?;
        let (cls, positions) = (cls.data(), positions.data());
        cpu::embed_tokens(patches.data(), shape, cls, positions, mask, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn take_tokens(&mut self, x: &Tensor, patches: &[u32], visible: usize) -> Result<Tensor> {
        let [batch, tokens, width] = rank(x.dims(), "The tokens")?;
        let shape = SelectionShape {
            batch,
            tokens,
            visible,
            width,
        };
        let mut out = Tensor::zeros(&[batch, visible.saturating_add(1), width])?;
        cpu::take_tokens(x.data(), shape, patches, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn interpolate_positions(
        &mut self,
        positions: &Tensor,
        from: Grid,
        to: Grid,
    ) -> Result<Tensor> {
        let width = positions.dims().last().copied().unwrap_or(0);
        let mut out = Tensor::zeros(&[1, 1 + numel(&[to.0, to.1])?, width])?;
        cpu::interpolate_positions(positions.data(), from, to, width, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn pool(&mut self, x: &Tensor, pooling: Pooling) -> Result<Tensor> {
        let [batch, tokens, width] = rank(x.dims(), "The hidden states")?;
        let mut out = Tensor::zeros(&[batch, width])?;
        let pool = match pooling {
            Pooling::Cls => cpu::pool_cls,
            Pooling::Mean => cpu::pool_mean,
        };
        pool(x.data(), batch, tokens, width, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn cross_entropy(&mut self, logits: &Tensor, labels: &[i32], smoothing: f64) -> Result<Tensor> {
        let [_, classes] = rank(logits.dims(), "The logits")?;
        scalar(cpu::cross_entropy_smoothed(
            logits.data(),
            classes,
            labels,
            smoothing,
        )?)
    }

    #[inline]
    fn mse_loss(&mut self, x: &Tensor, target: &Tensor) -> Result<Tensor> {
        scalar(cpu::mse_loss(x.data(), target.data())?)
    }

    #[inline]
    fn bce_with_logits(&mut self, logits: &Tensor, target: &Tensor) -> Result<Tensor> {
        scalar(cpu::bce_with_logits(logits.data(), target.data())?)
    }

    #[inline]
    fn set_linear(
        &mut self,
        weights: &mut PackedLinear,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<()> {
        let (outputs, inputs) = (weights.out_features(), weights.in_features());
        let bytes_of = |tensor: &Tensor, what: &str, dims: &[usize]| {
            check_len(what, tensor.data().len(), dims)?;
            Dtype::F32.encode(tensor.data())
        };
        let rows = bytes_of(weight, "The weight", &[outputs, inputs])?;
        let bias = bias
            .map(|bias| bytes_of(bias, "The bias", &[outputs]))
            .transpose()?;
        weights.set_rows(0, Dtype::F32, &rows)?;
        match bias {
            Some(bias) => weights.set_bias(0, Dtype::F32, &bias),
            None => Ok(()),
        }
    }

    #[inline]
    fn linear_weight(&mut self, weights: &PackedLinear) -> Result<Tensor> {
        let dims = [weights.out_features(), weights.in_features()];
        if weights.dtype() == Dtype::I8 {
            return Err(Error::Unsupported(
                "An int8 layer can't be trained: load the model with a floating dtype.".to_string(),
            ));
        }
        let mut out = Tensor::zeros(&dims)?;
        let rows = weights.get_rows(0, dims[0])?;
        weights.dtype().decode(&rows, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn linear_bias(&mut self, weights: &PackedLinear) -> Result<Tensor> {
        let bytes = weights
            .get_bias()?
            .ok_or_else(|| Error::InvalidArgument("This linear layer has no bias.".to_string()))?;
        let mut out = Tensor::zeros(&[weights.out_features()])?;
        weights.bias_dtype().decode(&bytes, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn activate(&mut self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let mut out = Tensor::zeros(x.dims())?;
        cpu::activate(x.data(), activation, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn activate_backward(
        &mut self,
        grad: &Tensor,
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        check_same_shape(grad, x)?;
        let mut out = Tensor::zeros(x.dims())?;
        cpu::activate_backward(grad.data(), x.data(), activation, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn linear_backward_input(&mut self, grad: &Tensor, weights: &PackedLinear) -> Result<Tensor> {
        let mut out = Tensor::zeros(&with_last(grad.dims(), weights.in_features())?)?;
        cpu::linear_backward_input(grad.data(), weights, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn linear_backward_weights(&mut self, grad: &Tensor, x: &Tensor) -> Result<[Tensor; 2]> {
        let [outputs, inputs] = [grad, x].map(|tensor| tensor.dims().last().copied().unwrap_or(0));
        let mut weight = Tensor::zeros(&[outputs, inputs])?;
        let mut bias = Tensor::zeros(&[outputs])?;
        cpu::linear_backward_weights(grad.data(), x.data(), weight.data_mut(), bias.data_mut())?;
        Ok([weight, bias])
    }

    #[inline]
    fn layer_norm_backward(
        &mut self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<[Tensor; 3]> {
        check_same_shape(grad, x)?;
        let mut by = gradients_like([x, weight, weight])?;
        let [by_x, by_weight, by_bias] = by.each_mut().map(Tensor::data_mut);
        let out = LayerNormGradients {
            x: by_x,
            weight: by_weight,
            bias: by_bias,
        };
        cpu::layer_norm_backward(grad.data(), x.data(), weight.data(), eps, out)?;
        Ok(by)
    }

    #[inline]
    fn scaled_dot_product_attention_backward(
        &mut self,
        grad: &Tensor,
        qkv: &Tensor,
        context: &Tensor,
        heads: usize,
    ) -> Result<Tensor> {
        check_same_shape(grad, context)?;
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(qkv.dims())?;
        let (grad, qkv, context) = (grad.data(), qkv.data(), context.data());
        cpu::scaled_dot_product_attention_backward(grad, qkv, context, shape, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn eager_attention_backward(
        &mut self,
        grad: &Tensor,
        qkv: &Tensor,
        probs: &Tensor,
        heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let shape = attention_shape(qkv.dims(), heads)?;
        let mut out = Tensor::zeros(qkv.dims())?;
        let (grad, qkv, probs) = (grad.data(), qkv.data(), probs.data());
        cpu::eager_attention_backward(grad, qkv, probs, shape, dropout, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn patch_embed_backward(
        &mut self,
        grad: &Tensor,
        pixels: &Tensor,
        patch: Grid,
    ) -> Result<[Tensor; 2]> {
        let shape = patch_shape(pixels, patch)?;
        let [_, _, outputs] = rank(grad.dims(), "The gradient of the patch embeddings")?;
        let depth = numel(&[shape.channels, patch.0, patch.1])?;
        let mut weight = Tensor::zeros(&[outputs, depth])?;
        let mut bias = Tensor::zeros(&[outputs])?;
        let (by_weight, by_bias) = (weight.data_mut(), bias.data_mut());
        cpu::patch_embed_backward(grad.data(), pixels.data(), shape, by_weight, by_bias)?;
        Ok([weight, bias])
    }

    #[inline]
    fn embed_tokens_backward(&mut self, grad: &Tensor, mask: Option<&[u8]>) -> Result<Vec<Tensor>> {
        let [batch, tokens, width] = rank(grad.dims(), "The gradient of the tokens")?;
        let Some(patches) = tokens.checked_sub(1) else {
            return Err(Error::InvalidArgument(
                "The tokens must include at least the CLS token.".to_string(),
            ));
        };
        let shape = EmbeddingShape {
            batch,
            patches,
            width,
        };
        let mut by_patches = Tensor::zeros(&[batch, patches, width])?;
        let mut by_cls = Tensor::zeros(&[1, 1, width])?;
        let mut by_positions = Tensor::zeros(&[1, tokens, width])?;
        let mut by_mask_token = mask.map(|_| Tensor::zeros(&[1, 1, width])).transpose()?;
        let out = EmbeddingGradients {
            patches: by_patches.data_mut(),
            cls: by_cls.data_mut(),
            positions: by_positions.data_mut(),
            mask: mask.zip(by_mask_token.as_mut().map(Tensor::data_mut)),
        };
        cpu::embed_tokens_backward(grad.data(), shape, out)?;
        let by = [by_patches, by_cls, by_positions];
        Ok(by.into_iter().chain(by_mask_token).collect())
    }

    #[inline]
    fn take_tokens_backward(
        &mut self,
        grad: &Tensor,
        patches: &[u32],
        visible: usize,
        tokens: usize,
    ) -> Result<Tensor> {
        let [batch, _, width] = rank(grad.dims(), "The gradient of the tokens")?;
        let shape = SelectionShape {
            batch,
            tokens,
            visible,
            width,
        };
        let mut out = Tensor::zeros(&[batch, tokens, width])?;
        cpu::take_tokens_backward(grad.data(), shape, patches, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn interpolate_positions_backward(
        &mut self,
        grad: &Tensor,
        from: Grid,
        to: Grid,
    ) -> Result<Tensor> {
        let width = grad.dims().last().copied().unwrap_or(0);
        let tokens = numel(&[from.0, from.1])?.saturating_add(1);
        let mut out = Tensor::zeros(&[1, tokens, width])?;
        cpu::interpolate_positions_backward(grad.data(), from, to, width, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn pool_backward(&mut self, grad: &Tensor, pooling: Pooling, tokens: usize) -> Result<Tensor> {
        let [batch, width] = rank(grad.dims(), "The gradient of pooling")?;
        let backward = match pooling {
            Pooling::Cls => cpu::pool_cls_backward,
            Pooling::Mean => cpu::pool_mean_backward,
        };
        let mut out = Tensor::zeros(&[batch, tokens, width])?;
        backward(grad.data(), batch, tokens, width, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn cross_entropy_backward(
        &mut self,
        logits: &Tensor,
        labels: &[i32],
        smoothing: f64,
    ) -> Result<Tensor> {
        let [_, classes] = rank(logits.dims(), "The logits")?;
        let mut out = Tensor::zeros(logits.dims())?;
        cpu::cross_entropy_backward(logits.data(), classes, labels, smoothing, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn mse_loss_backward(&mut self, x: &Tensor, target: &Tensor) -> Result<Tensor> {
        pairwise(x, target, cpu::mse_loss_backward)
    }

    #[inline]
    fn bce_with_logits_backward(&mut self, logits: &Tensor, target: &Tensor) -> Result<Tensor> {
        pairwise(logits, target, cpu::bce_with_logits_backward)
    }

    #[inline]
    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        pairwise(x, y, cpu::add)
    }

    #[inline]
    fn dropout(&mut self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let mut out = Tensor::zeros(x.dims())?;
        cpu::dropout(x.data(), dropout, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn accumulate(&mut self, target: &mut Tensor, x: &Tensor, scale: f32) -> Result<()> {
        cpu::accumulate(target.data_mut(), x.data(), scale)
    }

    #[inline]
    fn sum_of_squares(&mut self, x: &Tensor) -> Result<Tensor> {
        scalar(cpu::sum_of_squares(x.data())?)
    }

    #[inline]
    fn adamw_step(
        &mut self,
        parameter: &mut Tensor,
        gradient: &Tensor,
        moments: [&mut Tensor; 2],
        options: AdamW,
    ) -> Result<()> {
        let [m, v] = moments.map(Tensor::data_mut);
        cpu::adamw_step(parameter.data_mut(), gradient.data(), m, v, options)
    }

    #[inline]
    fn sgd_step(
        &mut self,
        parameter: &mut Tensor,
        gradient: &Tensor,
        momentum: Option<&mut Tensor>,
        options: Sgd,
    ) -> Result<()> {
        let momentum = momentum.map(Tensor::data_mut);
        cpu::sgd_step(parameter.data_mut(), gradient.data(), momentum, options)
    }

    #[inline]
    fn lars_step(
        &mut self,
        parameter: &mut Tensor,
        gradient: &Tensor,
        momentum: &mut Tensor,
        options: Lars,
    ) -> Result<()> {
        let momentum = momentum.data_mut();
        cpu::lars_step(parameter.data_mut(), gradient.data(), momentum, options)
    }

    #[inline]
    fn batch_norm(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<[Tensor; 3]> {
        check_batch(x, weight)?;
        let mut made = gradients_like([x, weight, weight])?;
        let [y, mean, variance] = made.each_mut().map(Tensor::data_mut);
        let out = BatchNormOutput { y, mean, variance };
        cpu::batch_norm(x.data(), weight.data(), bias.data(), eps, out)?;
        Ok(made)
    }

    #[inline]
    fn batch_norm_backward(
        &mut self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<[Tensor; 3]> {
        check_same_shape(grad, x)?;
        check_batch(x, weight)?;
        let mut by = gradients_like([x, weight, weight])?;
        let [by_x, by_weight, by_bias] = by.each_mut().map(Tensor::data_mut);
        let out = BatchNormGradients {
            x: by_x,
            weight: by_weight,
            bias: by_bias,
        };
        cpu::batch_norm_backward(grad.data(), x.data(), weight.data(), eps, out)?;
        Ok(by)
    }

    #[inline]
    fn batch_norm_inference(
        &mut self,
        x: &Tensor,
        given: [&Tensor; 4],
        eps: f32,
    ) -> Result<Tensor> {
        check_batch(x, given[0])?;
        let mut out = Tensor::zeros(x.dims())?;
        cpu::batch_norm_inference(x.data(), given.map(Tensor::data), eps, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn prototype_logits(
        &mut self,
        x: &Tensor,
        prototypes: &Tensor,
        temperature: f64,
    ) -> Result<Tensor> {
        let ([rows, width], count) = prototype_shape(x, prototypes)?;
        let mut out = Tensor::zeros(&[rows, count])?;
        let (x, prototypes) = (x.data(), prototypes.data());
        cpu::prototype_logits(x, prototypes, width, temperature, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn prototype_logits_backward(
        &mut self,
        grad: &Tensor,
        x: &Tensor,
        prototypes: &Tensor,
        temperature: f64,
    ) -> Result<[Tensor; 2]> {
        let ([_, width], _) = prototype_shape(x, prototypes)?;
        let mut by = gradients_like([x, prototypes])?;
        cpu::prototype_logits_backward(
            grad.data(),
            x.data(),
            prototypes.data(),
            width,
            temperature,
            by.each_mut().map(Tensor::data_mut),
        )?;
        Ok(by)
    }

    #[inline]
    fn concat_rows(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let [rows, width] = rank(x.dims(), "The rows to join")?;
        let [other_rows, other_width] = rank(y.dims(), "The rows to join")?;
        if width != other_width {
            return Err(Error::InvalidArgument(format!(
                "Rows of {width} values and rows of {other_width} values can't be joined: they must have the same width."
            )));
        }
        let mut out = Tensor::zeros(&[rows.saturating_add(other_rows), width])?;
        cpu::concat_rows(x.data(), y.data(), out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn concat_rows_backward(&mut self, grad: &Tensor, rows: usize) -> Result<[Tensor; 2]> {
        let [all, width] = rank(grad.dims(), "The gradient of joined rows")?;
        let rest = all.checked_sub(rows).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "A gradient of {all} joined rows can't be split after {rows} rows."
            ))
        })?;
        let mut by_x = Tensor::zeros(&[rows, width])?;
        let mut by_y = Tensor::zeros(&[rest, width])?;
        cpu::concat_rows_backward(grad.data(), by_x.data_mut(), by_y.data_mut())?;
        Ok([by_x, by_y])
    }

    #[inline]
    fn msn_targets(&mut self, logits: &Tensor, options: MsnTargets) -> Result<Tensor> {
        let [_, prototypes] = rank(logits.dims(), "The logits")?;
        let mut out = Tensor::zeros(logits.dims())?;
        cpu::msn_targets(logits.data(), prototypes, options, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn msn_loss(&mut self, logits: &Tensor, targets: &Tensor, weights: MsnLoss) -> Result<Tensor> {
        let prototypes = same_width(logits, targets)?;
        let terms = cpu::msn_loss(logits.data(), targets.data(), prototypes, weights)?;
        Tensor::from_vec(&[4], terms.map(|term| term as f32).to_vec())
    }

    #[inline]
    fn msn_loss_backward(
        &mut self,
        logits: &Tensor,
        targets: &Tensor,
        weights: MsnLoss,
    ) -> Result<Tensor> {
        let prototypes = same_width(logits, targets)?;
        let mut out = Tensor::zeros(logits.dims())?;
        let (logits, targets) = (logits.data(), targets.data());
        cpu::msn_loss_backward(logits, targets, prototypes, weights, out.data_mut())?;
        Ok(out)
    }

    #[inline]
    fn ema(&mut self, target: &mut Tensor, source: &Tensor, momentum: f64) -> Result<()> {
        cpu::ema(target.data_mut(), source.data(), momentum)
    }
}

/// An op on two operands of equal length; the last argument is the result.
type Pairwise = fn(&[f32], &[f32], &mut [f32]) -> Result<()>;

fn pairwise(x: &Tensor, y: &Tensor, op: Pairwise) -> Result<Tensor> {
    check_same_shape(x, y)?;
    let mut out = Tensor::zeros(x.dims())?;
    op(x.data(), y.data(), out.data_mut())?;
    Ok(out)
}

#[inline(never)]
fn scalar(value: f64) -> Result<Tensor> {
    Tensor::from_vec(&[1], vec![value as f32])
}

#[inline(never)]
fn gradients_like<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut made = [const { None }; N];
    for (made, tensor) in made.iter_mut().zip(tensors) {
        *made = Some(Tensor::zeros(tensor.dims())?);
    }
    Ok(made.map(|tensor| tensor.unwrap_or_else(|| unreachable!("every tensor was created above"))))
}

#[inline(never)]
fn attention_shape(dims: &[usize], heads: usize) -> Result<AttentionShape> {
    let [batch, tokens, width] = rank(dims, "qkv")?;
    let channels = heads
        .checked_mul(3)
        .filter(|&parts| parts > 0 && width.is_multiple_of(parts))
        .ok_or_else(|| {
            Error::InvalidArgument(format!(
                "qkv has width {width}, which isn't a multiple of 3 · {heads}, for the queries, keys and values of {heads} heads."
            ))
        })?;
    Ok(AttentionShape {
        batch,
        tokens,
        heads,
        head_dim: width / channels,
    })
}

fn patch_shape(pixels: &Tensor, (patch_height, patch_width): Grid) -> Result<PatchShape> {
    let [batch, channels, height, width] = rank(pixels.dims(), "pixel_values")?;
    Ok(PatchShape {
        batch,
        channels,
        height,
        width,
        patch_height,
        patch_width,
    })
}

fn rank<const N: usize>(dims: &[usize], what: &str) -> Result<[usize; N]> {
    dims.try_into().map_err(|_| {
        Error::InvalidArgument(format!(
            "{what} must have {N} dimensions, got the shape {dims:?}."
        ))
    })
}

#[inline(never)]
fn with_last(dims: &[usize], last: usize) -> Result<Vec<usize>> {
    match dims.split_last() {
        Some((_, leading)) => Ok([leading, &[last]].concat()),
        None => Err(Error::InvalidArgument(
            "A linear layer takes at least one dimension.".to_string(),
        )),
    }
}

/// Checks that x is a matrix with as many columns as the batch norm's weight.
fn check_batch(x: &Tensor, weight: &Tensor) -> Result<()> {
    let [_, columns] = rank(x.dims(), "The input of a batch norm")?;
    check_len(
        "The weight of a batch norm",
        weight.data().len(),
        &[columns],
    )
}

/// Returns ([rows, width], prototypes).
fn prototype_shape(x: &Tensor, prototypes: &Tensor) -> Result<([usize; 2], usize)> {
    let [rows, width] = rank(x.dims(), "The features compared with the prototypes")?;
    let [count, _] = rank(prototypes.dims(), "The prototypes")?;
    check_len("The prototypes", prototypes.data().len(), &[count, width])?;
    Ok(([rows, width], count))
}

/// The number of columns, which logits and targets must share.
fn same_width(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    let [_, prototypes] = rank(logits.dims(), "The logits")?;
    let [_, others] = rank(targets.dims(), "The targets")?;
    if prototypes == others {
        return Ok(prototypes);
    }
    Err(Error::InvalidArgument(format!(
        "The targets have {others} prototypes, but the logits have {prototypes}."
    )))
}

#[inline(never)]
fn check_same_shape(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.dims() == y.dims() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "Tensors of the shapes {:?} and {:?} don't match: both must have the same shape.",
        x.dims(),
        y.dims()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[usize]) -> Tensor {
        let count = dims.iter().product::<usize>();
        let data = (0..count).map(|v| (v * 7 % 5) as f32 / 5.0).collect();
        Tensor::from_vec(dims, data).unwrap()
    }

    const WEIGHTS: MsnLoss = MsnLoss {
        me_max_weight: 1.0,
        entropy_weight: 0.0,
    };

    #[test]
    fn parameters_must_be_finite_in_their_storage_type() {
        let bytes = 1e6f32.to_le_bytes();
        assert!(Cpu.parameter(&bytes, Dtype::F32, Dtype::BF16, &[1]).is_ok());
        let nan = f32::NAN.to_le_bytes();
        for (bytes, dtype) in [(bytes, Dtype::F16), (nan, Dtype::F32)] {
            let error = Cpu.parameter(&bytes, Dtype::F32, dtype, &[1]).unwrap_err();
            assert_eq!(error.code(), "INVALID_CHECKPOINT");
        }
    }

    #[test]
    fn a_layer_that_is_set_gives_back_what_it_was_set_to() {
        let (weight, bias) = (tensor(&[5, 3]), tensor(&[5]));
        let mut layer = Cpu.linear_weights(5, 3, Dtype::F32, true).unwrap();
        Cpu.set_linear(&mut layer, &weight, Some(&bias)).unwrap();
        assert_eq!(Cpu.linear_weight(&layer).unwrap(), weight);
        assert_eq!(Cpu.linear_bias(&layer).unwrap(), bias);
        let error = Cpu.set_linear(&mut layer, &bias, Some(&bias)).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let quantised = Cpu.linear_weights(5, 3, Dtype::I8, false).unwrap();
        let error = Cpu.linear_weight(&quantised).unwrap_err();
        assert_eq!(error.code(), "UNSUPPORTED");
        let error = Cpu.linear_bias(&quantised).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
    }

    #[test]
    fn results_have_the_shapes_that_the_ops_say() {
        let qkv = tensor(&[1, 2, 12]);
        let context = Cpu.scaled_dot_product_attention(&qkv, 2, None).unwrap();
        assert_eq!(context.dims(), [1, 2, 4]);
        let (x, weight) = (tensor(&[6, 5]), tensor(&[5]));
        let made = Cpu.batch_norm(&x, &weight, &weight, 1e-5).unwrap();
        assert_eq!(made.each_ref().map(Tensor::dims), [&[6, 5][..], &[5], &[5]]);
        let prototypes = tensor(&[4, 5]);
        let logits = Cpu.prototype_logits(&x, &prototypes, 0.1).unwrap();
        assert_eq!(logits.dims(), [6, 4]);
        let joined = Cpu.concat_rows(&x, &prototypes).unwrap();
        assert_eq!(joined.dims(), [10, 5]);
        let options = MsnTargets {
            temperature: 0.25,
            sinkhorn_iterations: 3,
        };
        let targets = Cpu.msn_targets(&tensor(&[3, 4]), options).unwrap();
        assert_eq!(targets.dims(), [3, 4]);
        let terms = Cpu.msn_loss(&logits, &targets, WEIGHTS).unwrap();
        assert_eq!(terms.dims(), [4]);
    }

    #[test]
    fn gradients_have_the_shapes_of_what_they_are_of() {
        let grad = tensor(&[2, 5, 6]);
        let mask = [0, 1, 0, 0, 1, 1, 0, 0];
        let by = Cpu.embed_tokens_backward(&grad, Some(&mask)).unwrap();
        let dims: Vec<_> = by.iter().map(Tensor::dims).collect();
        assert_eq!(dims, [&[2, 4, 6][..], &[1, 1, 6], &[1, 5, 6], &[1, 1, 6]]);
        assert_eq!(Cpu.embed_tokens_backward(&grad, None).unwrap().len(), 3);
        let x = tensor(&[2, 5, 3]);
        let by = Cpu.linear_backward_weights(&grad, &x).unwrap();
        assert_eq!(by.each_ref().map(Tensor::dims), [&[6, 3][..], &[6]]);
        let back = Cpu
            .take_tokens_backward(&grad, &[0, 1, 2, 3, 6, 5, 4, 3], 4, 8)
            .unwrap();
        assert_eq!(back.dims(), [2, 8, 6]);
        let (by_patch, pixels) = (tensor(&[2, 4, 7]), tensor(&[2, 3, 4, 5]));
        let by = Cpu
            .patch_embed_backward(&by_patch, &pixels, (2, 2))
            .unwrap();
        assert_eq!(by.each_ref().map(Tensor::dims), [&[7, 12][..], &[7]]);
        let (x, weight) = (tensor(&[6, 5]), tensor(&[5]));
        let by = Cpu.batch_norm_backward(&x, &x, &weight, 1e-5).unwrap();
        assert_eq!(by.each_ref().map(Tensor::dims), [&[6, 5][..], &[5], &[5]]);
        let (prototypes, logits) = (tensor(&[4, 5]), tensor(&[6, 4]));
        let by = Cpu
            .prototype_logits_backward(&logits, &x, &prototypes, 0.1)
            .unwrap();
        assert_eq!(by.each_ref().map(Tensor::dims), [[6, 5], [4, 5]]);
        let joined = Cpu.concat_rows(&x, &prototypes).unwrap();
        let by = Cpu.concat_rows_backward(&joined, 6).unwrap();
        assert_eq!(by, [x, prototypes]);
        let by = Cpu.msn_loss_backward(&logits, &tensor(&[3, 4]), WEIGHTS);
        assert_eq!(by.unwrap().dims(), [6, 4]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let (x, y) = (tensor(&[2, 6]), tensor(&[6, 2]));
        let (row, cube, qkv) = (tensor(&[6]), tensor(&[1, 2, 6]), tensor(&[1, 2, 12]));
        let too_likely = Dropout {
            probability: 2.0,
            seed: 0,
        };
        let errors = [
            Cpu.scaled_dot_product_attention(&qkv, 0, None).err(),
            Cpu.scaled_dot_product_attention(&qkv, 5, None).err(),
            Cpu.scaled_dot_product_attention(&qkv, usize::MAX, None)
                .err(),
            Cpu.cross_entropy(&cube, &[0], 0.0).err(),
            Cpu.add(&x, &y).err(),
            Cpu.activate_backward(&x, &y, Activation::Gelu).err(),
            Cpu.layer_norm_backward(&x, &y, &x, 1e-6).err(),
            Cpu.linear_backward_weights(&x, &y).err(),
            Cpu.scaled_dot_product_attention_backward(&x, &x, &x, 1)
                .err(),
            Cpu.embed_tokens_backward(&x, None).err(),
            Cpu.pool_backward(&x, Pooling::Mean, 1).err(),
            Cpu.take_tokens_backward(&x, &[], 0, 1).err(),
            Cpu.interpolate_positions_backward(&x, (usize::MAX, 2), (1, 1))
                .err(),
            Cpu.dropout(&x, too_likely).err(),
            Cpu.batch_norm(&x, &row, &y, 1e-5).err(),
            Cpu.batch_norm(&cube, &row, &row, 1e-5).err(),
            Cpu.batch_norm(&y, &row, &row, 1e-5).err(),
            Cpu.batch_norm_backward(&x, &y, &row, 1e-5).err(),
            Cpu.batch_norm_inference(&x, [&row, &row, &y, &row], 1e-5)
                .err(),
            Cpu.prototype_logits(&x, &y, 0.1).err(),
            Cpu.prototype_logits(&x, &x, 0.0).err(),
            Cpu.prototype_logits_backward(&x, &x, &x, 0.1).err(),
            Cpu.concat_rows(&x, &y).err(),
            Cpu.concat_rows_backward(&x, 3).err(),
            Cpu.msn_loss(&x, &y, WEIGHTS).err(),
            Cpu.msn_loss_backward(&x, &y, WEIGHTS).err(),
            Cpu.ema(&mut x.clone(), &row, 0.5).err(),
        ];
        for (index, error) in errors.into_iter().enumerate() {
            let code = error.map(|error| error.code());
            assert_eq!(code, Some("INVALID_ARGUMENT"), "case {index}");
        }
        assert!(Pooling::from_name("max").is_err());
    }
}
