//! The weight and bias of a linear layer on the device, in the layout that the GEMM reads.

use std::future::Future;

use vit_msn_tensor::{Dtype, Error, LinearParameters, Result, check_scale, quantise_row, try_vec};

use crate::buffers::{DeviceBuffer, exact_size};
use crate::stream::Stream;
use crate::tiles::{LayerShape, MAX_SIDE};

/// The number of rows in a part is a multiple of this, so that every tile divides it.
const PART_ROWS: usize = MAX_SIDE;

/// A block of whole rows of the weight, up to the size of a binding.
pub(crate) struct Part {
    pub buffer: DeviceBuffer,
    /// The first row.
    pub start: usize,
    pub rows: usize,
}

/// The weight `[out_features, in_features]` and bias `[out_features]` of a linear layer.
///
/// Row-major in the storage type, each row zero-padded to a multiple of four values, which the kernel loads together.
/// Half-width weights and bytes stay that way on the device and are widened in registers. Rows may be set in any
/// order and in pieces; using a weight with missing rows is an error.
pub struct GpuLinear {
    parameters: LinearParameters,
    dtype: Dtype,
    parts: Vec<Part>,
    /// Rounded to the storage type, but stored as float32; zeros if the layer has no bias.
    bias: DeviceBuffer,
    /// The scales of int8 rows.
    scales: Option<DeviceBuffer>,
}

impl GpuLinear {
    /// An empty weight of shape `[out_features, in_features]`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a zero size, UNSUPPORTED for a row that exceeds a binding, OUT_OF_MEMORY, ENGINE_DEAD.
    pub fn new(
        stream: &mut Stream,
        out_features: usize,
        in_features: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<Self> {
        let parameters = LinearParameters::new(out_features, in_features, has_bias)?;
        let row_bytes = padded(in_features)
            .and_then(|padded| padded.checked_mul(dtype.size()))
            .filter(|bytes| bytes.checked_mul(out_features).is_some())
            .ok_or(Error::out_of_memory(out_features, in_features))?;
        let what = || format!("A linear layer's weight [{out_features}, {in_features}]");
        let limit = stream.context().limits().max_storage_buffer_binding_size;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let parts = cut(out_features, limit / row_bytes)
            .map(|(start, rows)| {
                let buffer = stream.buffer((rows * row_bytes) as u64, exact_size, what)?;
                Ok(Part {
                    buffer,
                    start,
                    rows,
                })
            })
            .collect::<Result<_>>()?;
        let row_of_floats =
            |stream: &mut Stream| stream.buffer(4 * out_features as u64, exact_size, what);
        let bias = row_of_floats(stream)?;
        stream.write(bias.buffer(), 0, &try_vec(4 * out_features)?)?;
        let scales = match dtype {
            Dtype::I8 => Some(row_of_floats(stream)?),
            _ => None,
        };
        let mut layer = Self {
            parameters,
            dtype,
            parts,
            bias,
            scales,
        };
        if stream.plans() {
            layer.mark_set(has_bias);
        }
        Ok(layer)
    }

    /// N: the number of outputs.
    pub fn out_features(&self) -> usize {
        self.parameters.out_features()
    }

    /// K: the number of inputs.
    pub fn in_features(&self) -> usize {
        self.parameters.in_features()
    }

    /// The storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape of this layer for a number of rows, for choosing a tile.
    pub(crate) fn layer_shape(&self, rows: usize) -> LayerShape {
        LayerShape {
            rows,
            inputs: self.in_features(),
            outputs: self.out_features(),
            dtype: self.dtype,
        }
    }

    /// Whether the layer adds a bias.
    pub fn has_bias(&self) -> bool {
        self.parameters.has_bias()
    }

    /// The size in bytes of weight, scales and bias on the device.
    pub fn byte_size(&self) -> usize {
        let rows_of_floats = 1 + usize::from(self.scales.is_some());
        self.out_features() * (self.row_bytes() + 4 * rows_of_floats)
    }

    /// Sets whole rows, starting at `row0`, from `bytes`, the little-endian row-major values of the floating-point
    /// type `source`. int8 storage quantises them.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the bytes aren't a whole number of rows or exceed the weight, INVALID_CHECKPOINT, naming
    /// the first value that isn't finite or exceeds the storage type's range, ENGINE_DEAD.
    pub fn set_rows(
        &mut self,
        stream: &mut Stream,
        row0: usize,
        source: Dtype,
        bytes: &[u8],
    ) -> Result<()> {
        let set = self.parameters.begin_rows(row0, source, bytes.len())?;
        let mut values = try_vec(set.len() * self.in_features())?;
        source.decode_rounded(bytes, self.dtype, &mut values, |index| {
            self.parameters.place_in_weight(row0, index)
        })?;
        match self.dtype {
            Dtype::I8 => self.write_quantised(stream, row0, &values)?,
            dtype => self.write_rows(stream, row0, &dtype.encode(&values)?)?,
        }
        self.parameters.finish_rows(set);
        Ok(())
    }

    /// Sets already quantised rows, starting at `row0`: signed bytes, and the little-endian float32 scale of each
    /// row. int8 storage takes them unchanged; other types store their products.
    ///
    /// # Errors
    /// As [`GpuLinear::set_rows`], and INVALID_CHECKPOINT for a scale that isn't finite and positive.
    pub fn set_quantised_rows(
        &mut self,
        stream: &mut Stream,
        row0: usize,
        bytes: &[u8],
        scales: &[u8],
    ) -> Result<()> {
        let set = self
            .parameters
            .begin_quantised_rows(row0, bytes.len(), scales.len())?;
        let mut factors = try_vec(set.len())?;
        Dtype::F32.decode(scales, &mut factors)?;
        for (offset, &scale) in factors.iter().enumerate() {
            check_scale(row0 + offset, scale)?;
        }
        if self.scales.is_none() {
            let wide = multiply_out(bytes, self.in_features(), &factors)?;
            return self.set_rows(stream, row0, Dtype::F32, &wide);
        }
        self.write_scales(stream, row0, scales)?;
        self.write_rows(stream, row0, bytes)?;
        self.parameters.finish_rows(set);
        Ok(())
    }

    /// Sets the bias, starting at element `offset`.
    ///
    /// # Errors
    /// As [`GpuLinear::set_rows`], and INVALID_ARGUMENT if the layer has no bias.
    pub fn set_bias(
        &mut self,
        stream: &mut Stream,
        offset: usize,
        source: Dtype,
        bytes: &[u8],
    ) -> Result<()> {
        let set = self.parameters.begin_bias(offset, source, bytes.len())?;
        let mut values: Vec<f32> = try_vec(set.len())?;
        source.decode_rounded(bytes, self.dtype, &mut values, |index| {
            self.parameters.place_in_bias(offset + index)
        })?;
        stream.submit()?;
        stream.write(
            self.bias.buffer(),
            4 * offset as u64,
            bytemuck::cast_slice(&values),
        )?;
        self.parameters.finish_bias(set);
        Ok(())
    }

    /// Reads `rows` rows, starting at `row0`, as little-endian row-major bytes of the storage type.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for rows that don't exist, and those of [`Stream::read`].
    pub fn get_rows(
        &self,
        stream: &mut Stream,
        row0: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        self.parameters.check_rows(row0, rows)?;
        let row_bytes = self.row_bytes();
        let taken = self.in_features() * self.dtype.size();
        let pieces: Vec<_> = self
            .parts
            .iter()
            .filter_map(|part| {
                let (start, end) = (
                    row0.max(part.start),
                    (row0 + rows).min(part.start + part.rows),
                );
                (start < end).then(|| {
                    let offset = (start - part.start) * row_bytes;
                    let size = (end - start) * row_bytes;
                    (part.buffer.buffer(), offset as u64, size as u64)
                })
            })
            .collect();
        stream.read_pieces(&pieces, move |bytes| {
            let mut packed = try_vec(rows * taken)?;
            for (target, row) in packed
                .chunks_exact_mut(taken)
                .zip(bytes.chunks_exact(row_bytes))
            {
                target.copy_from_slice(&row[..taken]);
            }
            Ok(packed)
        })
    }

    /// Reads the scales of `rows` int8 rows, starting at `row0`, as little-endian float32.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for rows that don't exist or another storage type, and those of [`Stream::read`].
    pub fn get_scales(
        &self,
        stream: &mut Stream,
        row0: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        self.parameters.check_rows(row0, rows)?;
        let scales = self.scales.as_ref().ok_or_else(|| {
            Error::InvalidArgument(format!(
                "Only int8 weights have scales; this weight is {}.",
                self.dtype.name()
            ))
        })?;
        let piece = (scales.buffer(), 4 * row0 as u64, 4 * rows as u64);
        stream.read_pieces(&[piece], |bytes| Ok(bytes.to_vec()))
    }

    /// Reads `count` bias elements, starting at `offset`, as little-endian bytes of [`GpuLinear::bias_dtype`].
    ///
    /// # Errors
    /// INVALID_ARGUMENT for elements that don't exist, and those of [`Stream::read`].
    pub fn get_bias(
        &self,
        stream: &mut Stream,
        offset: usize,
        count: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let end = offset.checked_add(count);
        if !self.has_bias() || end.is_none_or(|end| end > self.out_features()) {
            return Err(Error::InvalidArgument(format!(
                "The bias has no elements {offset} to {offset} + {count}."
            )));
        }
        let dtype = self.bias_dtype();
        let piece = (self.bias.buffer(), 4 * offset as u64, 4 * count as u64);
        stream.read_pieces(&[piece], move |bytes| {
            let mut values = try_vec(count)?;
            Dtype::F32.decode(bytes, &mut values)?;
            dtype.encode(&values)
        })
    }

    /// The type that the bias is rounded to: the storage type, or float32 for int8 weights.
    pub fn bias_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::I8 => Dtype::F32,
            dtype => dtype,
        }
    }

    /// INVALID_ARGUMENT unless every row and every element of the bias was set.
    pub fn check_complete(&self) -> Result<()> {
        self.parameters.check_complete()
    }

    /// Marks the whole weight and, with `with_bias`, the bias as set; an op fills them.
    pub(crate) fn mark_set(&mut self, with_bias: bool) {
        let outputs = self.out_features();
        self.parameters.finish_rows(0..outputs);
        if with_bias {
            self.parameters.finish_bias(0..outputs);
        }
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn bias(&self) -> &DeviceBuffer {
        &self.bias
    }

    pub(crate) fn scales(&self) -> Option<&DeviceBuffer> {
        self.scales.as_ref()
    }

    /// Bytes per row, including its padding.
    fn row_bytes(&self) -> usize {
        self.in_features().next_multiple_of(4) * self.dtype.size()
    }

    fn write_quantised(&self, stream: &mut Stream, row0: usize, values: &[f32]) -> Result<()> {
        let mut bytes = try_vec(values.len())?;
        let mut scales: Vec<f32> = try_vec(values.len() / self.in_features())?;
        let rows = bytes.chunks_exact_mut(self.in_features()).zip(&mut scales);
        for ((bytes, scale), values) in rows.zip(values.chunks_exact(self.in_features())) {
            let (row_scale, steps) = quantise_row(values);
            *scale = row_scale;
            for (byte, step) in bytes.iter_mut().zip(steps) {
                *byte = step as u8;
            }
        }
        self.write_scales(stream, row0, bytemuck::cast_slice(&scales))?;
        self.write_rows(stream, row0, &bytes)
    }

    fn write_scales(&self, stream: &mut Stream, row0: usize, scales: &[u8]) -> Result<()> {
        let Some(target) = &self.scales else {
            return Ok(());
        };
        stream.submit()?;
        stream.write(target.buffer(), 4 * row0 as u64, scales)
    }

    /// Writes whole rows of the storage type, without padding, starting at `row0`.
    fn write_rows(&self, stream: &mut Stream, row0: usize, bytes: &[u8]) -> Result<()> {
        let (taken, row_bytes) = (self.in_features() * self.dtype.size(), self.row_bytes());
        let mut padded;
        let bytes = if taken == row_bytes {
            bytes
        } else {
            padded = try_vec(bytes.len() / taken * row_bytes)?;
            for (target, row) in padded
                .chunks_exact_mut(row_bytes)
                .zip(bytes.chunks_exact(taken))
            {
                target[..taken].copy_from_slice(row);
            }
            padded.as_slice()
        };
        // Recorded ops still read the old contents.
        stream.submit()?;
        let end = row0 + bytes.len() / row_bytes;
        for part in &self.parts {
            let (first, last) = (row0.max(part.start), end.min(part.start + part.rows));
            if first < last {
                let offset = (first - part.start) * row_bytes;
                let taken = &bytes[(first - row0) * row_bytes..(last - row0) * row_bytes];
                stream.write(part.buffer.buffer(), offset as u64, taken)?;
            }
        }
        Ok(())
    }
}

/// The number of values in a row, including padding.
fn padded(in_features: usize) -> Option<usize> {
    in_features.checked_next_multiple_of(4)
}

/// Splits `rows` rows into parts of at most `most`, as (first row, number of rows). Parts are whole tiles if a tile
/// fits.
fn cut(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let step = match most / PART_ROWS * PART_ROWS {
        0 => most.max(1),
        step => step,
    };
    (0..rows)
        .step_by(step)
        .map(move |start| (start, step.min(rows - start)))
}

/// Dequantises rows: their values times their scales, as little-endian float32.
fn multiply_out(bytes: &[u8], in_features: usize, scales: &[f32]) -> Result<Vec<u8>> {
    let mut wide: Vec<f32> = try_vec(bytes.len())?;
    for (index, (value, &byte)) in wide.iter_mut().zip(bytes).enumerate() {
        *value = f32::from(byte as i8) * scales[index / in_features];
    }
    Dtype::F32.encode(&wide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{code, stream, values, wait};
    use proptest::prelude::*;

    fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
        dtype.encode(values).unwrap()
    }

    proptest! {
        #[test]
        fn parts_are_all_rows_once(rows in 1usize..2000, most in 0usize..600) {
            let mut end = 0;
            for (start, count) in cut(rows, most) {
                prop_assert_eq!(start, end);
                prop_assert!(count >= 1 && count <= most.max(1));
                end += count;
            }
            prop_assert_eq!(end, rows);
        }
    }

    #[test]
    fn rows_come_back_rounded_in_pieces_and_any_order() {
        let Some(mut stream) = stream() else { return };
        for (rows, inputs) in [(5, 7), (3, 8), (1, 1)] {
            let weight = values(rows * inputs, 1);
            for storage in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                for source in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                    let mut w = GpuLinear::new(&mut stream, rows, inputs, storage, true).unwrap();
                    for row in (0..rows).rev() {
                        let bytes = bytes_of(&weight[row * inputs..][..inputs], source);
                        w.set_rows(&mut stream, row, source, &bytes).unwrap();
                    }
                    let bias = bytes_of(&weight[..rows], source);
                    w.set_bias(&mut stream, 0, source, &bias).unwrap();
                    w.check_complete().unwrap();
                    let expected: Vec<f32> = weight.iter().map(|&v| source.round(v)).collect();
                    let got = wait(w.get_rows(&mut stream, 0, rows));
                    assert_eq!(got, bytes_of(&expected, storage));
                    let last = wait(w.get_rows(&mut stream, rows - 1, 1));
                    assert_eq!(last, bytes_of(&expected[(rows - 1) * inputs..], storage));
                    let got = wait(w.get_bias(&mut stream, 0, rows));
                    assert_eq!(got, bytes_of(&expected[..rows], storage));
                }
            }
        }
    }

    #[test]
    fn int8_rows_are_quantised_kept_or_widened() {
        let Some(mut stream) = stream() else { return };
        let mut w = GpuLinear::new(&mut stream, 1, 3, Dtype::I8, false).unwrap();
        let row = bytes_of(&[0.5, -1.0, 0.25], Dtype::F32);
        w.set_rows(&mut stream, 0, Dtype::F32, &row).unwrap();
        assert_eq!(wait(w.get_rows(&mut stream, 0, 1)), [64, -127i8 as u8, 32]);
        let scale = bytes_of(&[1.0 / 127.0], Dtype::F32);
        assert_eq!(wait(w.get_scales(&mut stream, 0, 1)), scale);
        let (weights, scales) = ([127, 1, 0, -128i8 as u8], [0.5, 2.0]);
        let scales = bytes_of(&scales, Dtype::F32);
        for storage in [Dtype::I8, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut w = GpuLinear::new(&mut stream, 2, 2, storage, false).unwrap();
            w.set_quantised_rows(&mut stream, 0, &weights, &scales)
                .unwrap();
            w.check_complete().unwrap();
            let rows = wait(w.get_rows(&mut stream, 0, 2));
            if storage == Dtype::I8 {
                assert_eq!(rows, weights);
                assert_eq!(wait(w.get_scales(&mut stream, 0, 2)), scales);
            } else {
                assert_eq!(rows, bytes_of(&[63.5, 0.5, 0.0, -256.0], storage));
                assert_eq!(code(w.get_scales(&mut stream, 0, 2)), "INVALID_ARGUMENT");
            }
        }
    }

    #[test]
    fn values_that_do_not_fit_are_named_and_count_as_missing() {
        let Some(mut stream) = stream() else { return };
        for (storage, bad, sentence) in [
            (Dtype::F32, f32::NAN, "Row 2, column 1 of the weight is NaN"),
            (
                Dtype::I8,
                f32::INFINITY,
                "Row 2, column 1 of the weight is inf",
            ),
            (
                Dtype::F16,
                7e4,
                "Row 2, column 1 of the weight is 70000, too large for float16",
            ),
        ] {
            let mut w = GpuLinear::new(&mut stream, 3, 2, storage, true).unwrap();
            let good = bytes_of(&[1.0; 6], Dtype::F32);
            w.set_rows(&mut stream, 0, Dtype::F32, &good).unwrap();
            w.set_bias(&mut stream, 0, Dtype::F32, &good[..12]).unwrap();
            w.check_complete().unwrap();
            let bytes = bytes_of(&[1.0, 2.0, 3.0, bad], Dtype::F32);
            let error = w.set_rows(&mut stream, 1, Dtype::F32, &bytes).unwrap_err();
            assert_eq!(error.code(), "INVALID_CHECKPOINT");
            assert!(error.to_string().starts_with(sentence), "{error}");
            let error = w.check_complete().unwrap_err().to_string();
            assert_eq!(error, "Row 1 of a weight was never set.");
            w.set_rows(&mut stream, 0, Dtype::F32, &good).unwrap();
            let inf = bytes_of(&[f32::INFINITY], Dtype::F16);
            let error = w.set_bias(&mut stream, 1, Dtype::F16, &inf).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("Element 1 of the bias is inf"),
                "{error}"
            );
            let error = w.check_complete().unwrap_err().to_string();
            assert_eq!(error, "Element 1 of a bias was never set.");
        }
    }

    #[test]
    fn weights_take_no_more_than_they_need() {
        let Some(mut stream) = stream() else { return };
        for (dtype, size) in [(Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::I8, 1)] {
            let before = stream.memory().live;
            let w = GpuLinear::new(&mut stream, 300, 1000, dtype, true).unwrap();
            let scales = if dtype == Dtype::I8 { 1200 } else { 0 };
            assert_eq!(w.byte_size(), 300 * 1000 * size + 1200 + scales);
            let taken = (stream.memory().live - before) as usize;
            assert!(taken < w.byte_size() + 3 * 256, "{taken}");
        }
    }

    #[test]
    fn wrong_sizes_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut new = |n, k, dtype| code(GpuLinear::new(&mut stream, n, k, dtype, true));
        assert_eq!(new(0, 3, Dtype::F32), "INVALID_ARGUMENT");
        assert_eq!(new(3, 0, Dtype::F32), "INVALID_ARGUMENT");
        assert_eq!(new(usize::MAX / 4, 8, Dtype::F32), "OUT_OF_MEMORY");
        assert_eq!(new(usize::MAX, usize::MAX, Dtype::F16), "OUT_OF_MEMORY");
        assert_eq!(new(1, 1 << 40, Dtype::F32), "UNSUPPORTED");
        let mut w = GpuLinear::new(&mut stream, 3, 2, Dtype::F32, false).unwrap();
        for (row0, len) in [(0, 7), (0, 32), (2, 16), (3, 8), (usize::MAX, 8)] {
            let set = w.set_rows(&mut stream, row0, Dtype::F32, &vec![0; len]);
            assert_eq!(code(set), "INVALID_ARGUMENT");
        }
        let set = w.set_rows(&mut stream, 0, Dtype::I8, &[0; 2]);
        assert_eq!(code(set), "UNSUPPORTED");
        let one = bytes_of(&[1.0], Dtype::F32);
        for (row, len, scales) in [
            (0, 3, 1),
            (0, 4, 1),
            (1, 4, 2),
            (2, 4, 2),
            (usize::MAX, 2, 1),
        ] {
            let set = w.set_quantised_rows(&mut stream, row, &vec![0; len], &one.repeat(scales));
            let expected = if (row, len) == (1, 4) {
                ""
            } else {
                "INVALID_ARGUMENT"
            };
            assert_eq!(set.err().map_or("", |error| error.code()), expected);
        }
        let nan = bytes_of(&[f32::NAN], Dtype::F32);
        let set = w.set_quantised_rows(&mut stream, 0, &[0; 2], &nan);
        assert_eq!(code(set), "INVALID_CHECKPOINT");
        let set = w.set_bias(&mut stream, 0, Dtype::F32, &[0; 4]);
        assert_eq!(code(set), "INVALID_ARGUMENT");
        assert_eq!(code(w.get_bias(&mut stream, 0, 1)), "INVALID_ARGUMENT");
        for (row0, rows) in [(0, 4), (3, 1), (usize::MAX, 2)] {
            let get = w.get_rows(&mut stream, row0, rows);
            assert_eq!(code(get), "INVALID_ARGUMENT");
        }
    }
}
