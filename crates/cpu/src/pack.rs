//! The weight of a linear layer, packed once into the order in which the GEMM reads it.

use std::ops::Range;

use half::{bf16, f16};
use vit_msn_tensor::{Dtype, Error, Result, check_scale, try_vec};

use crate::gemm::{NR, Panels as PanelBlocks};
use crate::quantise::QuantisedPanels;
use crate::simd::{F32x4, LANES};

/// One row of a panel: a weight of each of NR outputs for the same input. Aligned, so that no vector load straddles
/// two cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Row([f32; NR]);

/// A [`Row`] in float16 or bfloat16 bits.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct HalfRow([u16; NR]);

enum Panels {
    Full(Vec<Row>),
    Half(Vec<HalfRow>),
    Quantised(QuantisedPanels),
}

/// How many inputs of a weight row are scattered at a time: the part of the panel stays in the L1 cache.
const SCATTER: usize = 64;

/// The weight `[out_features, in_features]` and bias `[out_features]` of a linear layer.
///
/// The outputs are cut into panels of NR; a panel holds, input after input, the NR weights of its outputs, with
/// zeros where the last panel has fewer outputs. Half-width weights stay half-width here and are widened a
/// block at a time while the GEMM runs. Rows may arrive in any order and in pieces, so that loading never
/// holds a second copy; a weight that misses rows is refused when used.
pub struct PackedLinear {
    out_features: usize,
    in_features: usize,
    dtype: Dtype,
    panels: Panels,
    /// Padded to whole panels. Rounded to `dtype`, but kept wide: it is small and starts every accumulator.
    bias: Vec<f32>,
    has_bias: bool,
    rows_set: Vec<bool>,
    bias_set: Vec<bool>,
}

impl PackedLinear {
    /// An empty weight of shape `[out_features, in_features]`. Errors: INVALID_ARGUMENT for a zero size,
    /// UNSUPPORTED for int8, OUT_OF_MEMORY.
    pub fn new(
        out_features: usize,
        in_features: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<Self> {
        if out_features == 0 || in_features == 0 {
            return Err(Error::InvalidArgument(format!(
                "A linear layer's weight can't have the shape [{out_features}, {in_features}]: both sizes must be at least 1."
            )));
        }
        let panel_count = out_features.div_ceil(NR);
        let rows = panel_count
            .checked_mul(in_features)
            .ok_or(Error::out_of_memory(panel_count, in_features))?;
        let panels = match dtype {
            Dtype::F32 => Panels::Full(try_vec(rows)?),
            Dtype::F16 | Dtype::BF16 => Panels::Half(try_vec(rows)?),
            Dtype::I8 => Panels::Quantised(QuantisedPanels::new(out_features, in_features)?),
        };
        Ok(Self {
            out_features,
            in_features,
            dtype,
            panels,
            bias: try_vec(panel_count * NR)?,
            has_bias,
            rows_set: try_vec(out_features)?,
            bias_set: try_vec(if has_bias { out_features } else { 0 })?,
        })
    }

    /// A float32 right operand of one product, without a bias, which its maker fills through
    /// [`PackedLinear::panels_mut`]. Errors: as [`PackedLinear::new`].
    pub(crate) fn operand(out_features: usize, in_features: usize) -> Result<Self> {
        let mut operand = Self::new(out_features, in_features, Dtype::F32, false)?;
        operand.rows_set.fill(true);
        Ok(operand)
    }

    /// The panels of float32 storage, one after the other; none of other types.
    pub(crate) fn panels_mut(&mut self) -> &mut [f32] {
        match &mut self.panels {
            // SAFETY: as in `panel_blocks`.
            Panels::Full(rows) => unsafe {
                std::slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), rows.len() * NR)
            },
            Panels::Half(_) | Panels::Quantised(_) => &mut [],
        }
    }

    /// N: the number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K: the number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether the layer adds a bias.
    pub fn has_bias(&self) -> bool {
        self.has_bias
    }

    /// The bytes that weight and bias take.
    pub fn byte_size(&self) -> usize {
        let panels = match &self.panels {
            Panels::Full(rows) => size_of_val(rows.as_slice()),
            Panels::Half(rows) => size_of_val(rows.as_slice()),
            Panels::Quantised(panels) => panels.byte_size(),
        };
        panels + size_of_val(self.bias.as_slice())
    }

    /// Sets whole rows from `row0` on from `bytes`, the little-endian row-major values of the floating type `source`;
    /// int8 storage quantises them. Errors: INVALID_ARGUMENT when the bytes are no whole rows or there are too many; INVALID_CHECKPOINT
    /// naming the first value that isn't finite or doesn't fit the storage type.
    pub fn set_rows(&mut self, row0: usize, source: Dtype, bytes: &[u8]) -> Result<()> {
        let row_bytes = self.in_features * source.size();
        let rows = bytes.len() / row_bytes;
        if !bytes.len().is_multiple_of(row_bytes) || rows > self.out_features.saturating_sub(row0) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes of {} from row {row0} on don't fit a weight of shape [{}, {}].",
                bytes.len(),
                source.name(),
                self.out_features,
                self.in_features
            )));
        }
        let place = Place {
            row0,
            depth: self.in_features,
        };
        let finite = match (&mut self.panels, self.dtype) {
            (Panels::Full(panels), _) => scatter_from(
                panels,
                place,
                source,
                bytes,
                |row: &mut Row| &mut row.0,
                |v| v,
                f32::is_finite,
            )?,
            (Panels::Half(panels), dtype) => scatter_half(panels, place, dtype, source, bytes)?,
            (Panels::Quantised(panels), _) => quantise(panels, place, source, bytes)?,
        };
        self.rows_set[row0..row0 + rows].fill(finite);
        if finite {
            Ok(())
        } else {
            Err(self.find_unfit(row0, source, bytes))
        }
    }

    /// Sets rows from `row0` on that are quantised already: signed bytes, and the little-endian float32 scale of each
    /// row. int8 storage keeps them as they are, other types hold their products. Errors: as [`PackedLinear::set_rows`],
    /// and INVALID_CHECKPOINT for a scale that isn't finite and positive.
    pub fn set_quantised_rows(&mut self, row0: usize, bytes: &[u8], scales: &[u8]) -> Result<()> {
        let rows = bytes.len() / self.in_features;
        if Some(bytes.len()) != rows.checked_mul(self.in_features)
            || scales.len() != rows * size_of::<f32>()
            || rows > self.out_features.saturating_sub(row0)
        {
            return Err(Error::InvalidArgument(format!(
                "{} int8 weights and {} bytes of scales from row {row0} on don't fit a weight of shape [{}, {}].",
                bytes.len(),
                scales.len(),
                self.out_features,
                self.in_features
            )));
        }
        self.rows_set[row0..row0 + rows].fill(false);
        let (scales, _) = scales.as_chunks::<4>();
        for (offset, (weights, scale)) in
            bytes.chunks_exact(self.in_features).zip(scales).enumerate()
        {
            self.set_quantised_row(row0 + offset, weights, f32::from_le_bytes(*scale))?;
        }
        self.rows_set[row0..row0 + rows].fill(true);
        Ok(())
    }

    fn set_quantised_row(&mut self, row: usize, weights: &[u8], scale: f32) -> Result<()> {
        if let Panels::Quantised(panels) = &mut self.panels {
            return panels.set_row(row, weights, scale);
        }
        check_scale(row, scale)?;
        let mut wide = try_vec(weights.len())?;
        for (value, &weight) in wide.iter_mut().zip(weights) {
            *value = f32::from(weight as i8) * scale;
        }
        self.set_rows(row, Dtype::F32, &Dtype::F32.encode(&wide)?)
    }

    /// The scales of `rows` int8 rows from `row0` on as little-endian float32. Errors: INVALID_ARGUMENT for rows that
    /// don't exist or another storage type, OUT_OF_MEMORY.
    pub fn get_scales(&self, row0: usize, rows: usize) -> Result<Vec<u8>> {
        self.check_rows(row0, rows)?;
        match &self.panels {
            Panels::Quantised(panels) => Dtype::F32.encode(panels.scales(row0, rows)),
            _ => Err(Error::InvalidArgument(format!(
                "A weight of {} has no scales.",
                self.dtype.name()
            ))),
        }
    }

    /// Sets the bias from element `offset` on. Errors as [`PackedLinear::set_rows`], and INVALID_ARGUMENT
    /// where the layer has no bias.
    pub fn set_bias(&mut self, offset: usize, source: Dtype, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() / source.size();
        if !self.has_bias
            || !bytes.len().is_multiple_of(source.size())
            || count > self.out_features.saturating_sub(offset)
        {
            return Err(Error::InvalidArgument(format!(
                "{} bytes of {} from element {offset} on don't fit a bias of {} elements.",
                bytes.len(),
                source.name(),
                self.bias_set.len()
            )));
        }
        self.bias_set[offset..offset + count].fill(false);
        let target = &mut self.bias[offset..offset + count];
        source.decode_rounded(bytes, self.dtype, target, |index| {
            format!("Element {} of the bias", offset + index)
        })?;
        self.bias_set[offset..offset + count].fill(true);
        Ok(())
    }

    /// `rows` rows from `row0` on as little-endian row-major bytes of the storage type.
    /// Errors: INVALID_ARGUMENT for rows that don't exist, OUT_OF_MEMORY.
    pub fn get_rows(&self, row0: usize, rows: usize) -> Result<Vec<u8>> {
        self.check_rows(row0, rows)?;
        let mut bytes = try_vec(rows * self.in_features * self.dtype.size())?;
        let place = Place {
            row0,
            depth: self.in_features,
        };
        match &self.panels {
            Panels::Full(panels) => gather(panels, place, &mut bytes, |row, lane| {
                row.0[lane].to_le_bytes()
            }),
            Panels::Half(panels) => gather(panels, place, &mut bytes, |row, lane| {
                row.0[lane].to_le_bytes()
            }),
            Panels::Quantised(panels) => {
                for (offset, target) in bytes.chunks_exact_mut(self.in_features).enumerate() {
                    panels.get_row(row0 + offset, target);
                }
            }
        }
        Ok(bytes)
    }

    fn check_rows(&self, row0: usize, rows: usize) -> Result<()> {
        let end = row0.checked_add(rows);
        if end.is_some_and(|end| end <= self.out_features) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "Rows {row0} to {row0} + {rows} aren't all in a weight of shape [{}, {}].",
            self.out_features, self.in_features
        )))
    }

    /// The bias as little-endian bytes of [`PackedLinear::bias_dtype`]; None where the layer has none.
    /// Errors: OUT_OF_MEMORY.
    pub fn get_bias(&self) -> Result<Option<Vec<u8>>> {
        self.has_bias
            .then(|| self.bias_dtype().encode(&self.bias[..self.out_features]))
            .transpose()
    }

    /// The type that the bias is rounded to: the storage type, but float32 beside int8 weights.
    pub fn bias_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::I8 => Dtype::F32,
            dtype => dtype,
        }
    }

    /// INVALID_ARGUMENT unless every row and every element of the bias was set.
    pub fn check_complete(&self) -> Result<()> {
        if let Some(row) = self.rows_set.iter().position(|set| !set) {
            return Err(Error::InvalidArgument(format!(
                "Row {row} of a weight was never set."
            )));
        }
        if let Some(element) = self.bias_set.iter().position(|set| !set) {
            return Err(Error::InvalidArgument(format!(
                "Element {element} of a bias was never set."
            )));
        }
        Ok(())
    }

    /// Whether the weights are float32, which the GEMM reads in place.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.panels, Panels::Full(_))
    }

    /// The bias of some panels, NR values each; zeros where there is no bias.
    pub(crate) fn panel_biases(&self, panels: Range<usize>) -> &[f32] {
        &self.bias[panels.start * NR..panels.end * NR]
    }

    /// The bias, padded with zeros to whole panels.
    pub(crate) fn padded_bias(&self) -> &[f32] {
        &self.bias
    }

    /// The panels of int8 storage.
    pub(crate) fn quantised(&self) -> Option<&QuantisedPanels> {
        match &self.panels {
            Panels::Quantised(panels) => Some(panels),
            Panels::Full(_) | Panels::Half(_) => None,
        }
    }

    /// Some inputs of some panels as float32: the stored values themselves, or widened into `scratch`, which must hold
    /// them for a half-width weight.
    pub(crate) fn panel_blocks<'a>(
        &'a self,
        panels: Range<usize>,
        inputs: Range<usize>,
        scratch: &'a mut [f32],
    ) -> PanelBlocks<'a> {
        let depth = inputs.len();
        match &self.panels {
            Panels::Full(rows) => {
                let rows = &rows[panels.start * self.in_features..panels.end * self.in_features];
                // SAFETY: a Row is exactly NR floats without padding (a multiple of 32 bytes, aligned to 32).
                let values: &[f32] =
                    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len() * NR) };
                PanelBlocks {
                    values: &values[inputs.start * NR..],
                    stride: self.in_features * NR,
                    depth,
                }
            }
            Panels::Half(rows) => {
                let blocks = scratch.chunks_exact_mut(depth * NR);
                for (panel, target) in panels.zip(blocks) {
                    let first = panel * self.in_features + inputs.start;
                    widen(&rows[first..first + depth], self.dtype, target);
                }
                PanelBlocks {
                    values: scratch,
                    stride: depth * NR,
                    depth,
                }
            }
            Panels::Quantised(_) => unreachable!("int8 weights have a kernel of their own"),
        }
    }

    /// The error for the first value of `bytes` that the storage type can't hold.
    fn find_unfit(&self, row0: usize, source: Dtype, bytes: &[u8]) -> Error {
        let values = bytes.chunks_exact(source.size()).map(|chunk| {
            let mut value = [f32::NAN];
            let _ = source.decode(chunk, &mut value);
            value[0]
        });
        let found = values
            .enumerate()
            .find(|(_, value)| !self.dtype.round(*value).is_finite());
        let (index, value) = found.unwrap_or((0, f32::NAN));
        let (row, column) = (row0 + index / self.in_features, index % self.in_features);
        self.dtype
            .unfit(&format!("Row {row}, column {column} of the weight"), value)
    }
}

/// Where in a weight rows begin, and how many inputs each has.
#[derive(Clone, Copy)]
struct Place {
    row0: usize,
    depth: usize,
}

/// [`scatter_from`] into float16 or bfloat16, which takes values of the same type bit for bit.
fn scatter_half(
    panels: &mut [HalfRow],
    place: Place,
    dtype: Dtype,
    source: Dtype,
    bytes: &[u8],
) -> Result<bool> {
    let exponent = if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 };
    let finite = |bits: u16| bits & exponent != exponent;
    if source == dtype {
        return Ok(scatter(
            panels,
            place,
            bytes,
            |row| &mut row.0,
            u16::from_le_bytes,
            finite,
        ));
    }
    match dtype {
        Dtype::F16 => scatter_from(
            panels,
            place,
            source,
            bytes,
            |row| &mut row.0,
            |v| f16::from_f32(v).to_bits(),
            finite,
        ),
        _ => scatter_from(
            panels,
            place,
            source,
            bytes,
            |row| &mut row.0,
            |v| bf16::from_f32(v).to_bits(),
            finite,
        ),
    }
}

/// Quantises rows of any floating type; false when a value isn't finite.
fn quantise(
    panels: &mut QuantisedPanels,
    place: Place,
    source: Dtype,
    bytes: &[u8],
) -> Result<bool> {
    let mut values = try_vec(place.depth)?;
    let mut all_finite = true;
    for (offset, row) in bytes.chunks_exact(place.depth * source.size()).enumerate() {
        source.decode(row, &mut values)?;
        all_finite &= values.iter().all(|value| value.is_finite());
        panels.quantise_row(place.row0 + offset, &values);
    }
    Ok(all_finite)
}

/// [`scatter`] from any floating type, widened to float32 and narrowed to what the panel holds.
fn scatter_from<R, T: Copy>(
    panels: &mut [R],
    place: Place,
    source: Dtype,
    bytes: &[u8],
    lanes: impl Fn(&mut R) -> &mut [T; NR],
    narrow: impl Fn(f32) -> T,
    finite: impl Fn(T) -> bool,
) -> Result<bool> {
    Ok(match source {
        Dtype::F32 => scatter(
            panels,
            place,
            bytes,
            lanes,
            |b| narrow(f32::from_le_bytes(b)),
            finite,
        ),
        Dtype::F16 => scatter(
            panels,
            place,
            bytes,
            lanes,
            |b| narrow(f16::from_le_bytes(b).to_f32()),
            finite,
        ),
        Dtype::BF16 => scatter(
            panels,
            place,
            bytes,
            lanes,
            |b| narrow(bf16::from_le_bytes(b).to_f32()),
            finite,
        ),
        Dtype::I8 => {
            return Err(Error::Unsupported(
                "int8 weights can't be loaded without their scales.".to_string(),
            ));
        }
    })
}

/// Writes rows into their lanes of the panels; false when a written value isn't finite. The caller has checked
/// that the rows exist.
fn scatter<R, T: Copy, const SIZE: usize>(
    panels: &mut [R],
    place: Place,
    bytes: &[u8],
    lanes: impl Fn(&mut R) -> &mut [T; NR],
    convert: impl Fn([u8; SIZE]) -> T,
    finite: impl Fn(T) -> bool,
) -> bool {
    let (values, _) = bytes.as_chunks::<SIZE>();
    let end = place.row0 + values.len() / place.depth;
    let mut all_finite = true;
    let mut row = place.row0;
    while row < end {
        let panel = row / NR;
        let panel_end = end.min((panel + 1) * NR);
        for k0 in (0..place.depth).step_by(SCATTER) {
            let k1 = place.depth.min(k0 + SCATTER);
            let block = &mut panels[panel * place.depth + k0..panel * place.depth + k1];
            for r in row..panel_end {
                let source = &values[(r - place.row0) * place.depth + k0..][..k1 - k0];
                for (target, &value) in block.iter_mut().zip(source) {
                    let value = convert(value);
                    all_finite &= finite(value);
                    lanes(target)[r % NR] = value;
                }
            }
        }
        row = panel_end;
    }
    all_finite
}

/// The opposite of [`scatter`].
fn gather<R, const SIZE: usize>(
    panels: &[R],
    place: Place,
    bytes: &mut [u8],
    read: impl Fn(&R, usize) -> [u8; SIZE],
) {
    let (values, _) = bytes.as_chunks_mut::<SIZE>();
    for (offset, target) in values.chunks_exact_mut(place.depth).enumerate() {
        let row = place.row0 + offset;
        let panel = &panels[row / NR * place.depth..][..place.depth];
        for (value, source) in target.iter_mut().zip(panel) {
            *value = read(source, row % NR);
        }
    }
}

fn widen(rows: &[HalfRow], dtype: Dtype, out: &mut [f32]) {
    for (row, target) in rows.iter().zip(out.chunks_exact_mut(NR)) {
        for lane in (0..NR).step_by(LANES) {
            let source = row.0[lane..lane + LANES].as_ptr();
            let target = target[lane..lane + LANES].as_mut_ptr();
            // SAFETY: both slices are four values long.
            unsafe {
                match dtype {
                    Dtype::F16 => F32x4::load_f16(source).store(target),
                    _ => F32x4::load_bf16(source).store(target),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
        dtype.encode(values).unwrap()
    }

    fn kinds() -> impl Strategy<Value = Dtype> {
        prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)]
    }

    proptest! {
        #[test]
        fn rows_come_back_exactly_however_they_are_cut(
            n in 1usize..40, k in 1usize..150, cut in 0usize..40, source in kinds(), storage in kinds(),
        ) {
            let cut = cut.min(n);
            let weight = bytes_of(&values(n * k, 7), source);
            let bias = bytes_of(&values(n, 8), source);
            let mut w = PackedLinear::new(n, k, storage, true).unwrap();
            let size = source.size();
            w.set_rows(cut, source, &weight[cut * k * size..]).unwrap();
            w.set_rows(0, source, &weight[..cut * k * size]).unwrap();
            w.set_bias(cut, source, &bias[cut * size..]).unwrap();
            w.set_bias(0, source, &bias[..cut * size]).unwrap();
            w.check_complete().unwrap();

            let mut wide = vec![0.0; n * k];
            source.decode(&weight, &mut wide).unwrap();
            prop_assert_eq!(w.get_rows(0, n).unwrap(), bytes_of(&wide, storage));
            let mut wide = vec![0.0; n];
            source.decode(&bias, &mut wide).unwrap();
            prop_assert_eq!(w.get_bias().unwrap().unwrap(), bytes_of(&wide, storage));
        }
    }

    #[test]
    fn half_width_weights_take_half_the_memory() {
        let full = PackedLinear::new(64, 128, Dtype::F32, false)
            .unwrap()
            .byte_size();
        let half = PackedLinear::new(64, 128, Dtype::BF16, false)
            .unwrap()
            .byte_size();
        assert_eq!(full, 64 * 128 * 4 + 64 * 4);
        assert_eq!(half, 64 * 128 * 2 + 64 * 4);
    }

    #[test]
    fn quantised_rows_are_kept_or_widened() {
        let (weights, scales) = ([127, 1, 0, -128i8 as u8], [0.5, 2.0]);
        let scales = bytes_of(&scales, Dtype::F32);
        let mut w = PackedLinear::new(2, 2, Dtype::I8, false).unwrap();
        w.set_quantised_rows(0, &weights, &scales).unwrap();
        assert_eq!(w.get_rows(0, 2).unwrap(), weights);
        assert_eq!(w.get_scales(0, 2).unwrap(), scales);
        for storage in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut w = PackedLinear::new(2, 2, storage, false).unwrap();
            w.set_quantised_rows(0, &weights, &scales).unwrap();
            let wide = bytes_of(&[63.5, 0.5, 0.0, -256.0], storage);
            assert_eq!(w.get_rows(0, 2).unwrap(), wide);
            assert_eq!(w.get_scales(0, 2).unwrap_err().code(), "INVALID_ARGUMENT");
        }
    }

    #[test]
    fn damaged_quantised_rows_are_errors() {
        for storage in [Dtype::I8, Dtype::F32] {
            let mut w = PackedLinear::new(2, 2, storage, false).unwrap();
            let one = bytes_of(&[1.0], Dtype::F32);
            for (row, bytes, scales) in [
                (0, 3, 1),
                (0, 4, 1),
                (1, 4, 2),
                (2, 2, 1),
                (usize::MAX, 2, 1),
            ] {
                let error = w.set_quantised_rows(row, &vec![0; bytes], &one.repeat(scales));
                assert_eq!(error.unwrap_err().code(), "INVALID_ARGUMENT");
            }
            let nan = bytes_of(&[f32::NAN], Dtype::F32);
            let error = w.set_quantised_rows(0, &[0, 0], &nan).unwrap_err();
            assert_eq!(error.code(), "INVALID_CHECKPOINT");
            w.set_quantised_rows(1, &[0, 0], &one).unwrap();
            assert!(
                w.check_complete()
                    .unwrap_err()
                    .to_string()
                    .contains("Row 0")
            );
        }
    }

    #[test]
    fn int8_takes_a_quarter() {
        let w = PackedLinear::new(64, 128, Dtype::I8, false).unwrap();
        assert_eq!(w.byte_size(), 64 * 128 + 2 * 64 * 4);
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        for storage in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8] {
            let mut w = PackedLinear::new(3, 2, storage, true).unwrap();
            let error = w
                .set_rows(
                    1,
                    Dtype::F32,
                    &bytes_of(&[1.0, 2.0, 3.0, f32::NAN], Dtype::F32),
                )
                .unwrap_err();
            assert_eq!(error.code(), "INVALID_CHECKPOINT");
            assert!(
                error
                    .to_string()
                    .starts_with("Row 2, column 1 of the weight is NaN"),
                "{error}"
            );
            let error = w
                .set_bias(1, Dtype::F16, &bytes_of(&[f32::INFINITY], Dtype::F16))
                .unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("Element 1 of the bias is inf"),
                "{error}"
            );
            assert!(w.check_complete().is_err());
        }
    }

    #[test]
    fn a_row_that_failed_counts_as_missing() {
        let mut w = PackedLinear::new(1, 1, Dtype::F32, true).unwrap();
        let (good, bad) = (
            bytes_of(&[1.0], Dtype::F32),
            bytes_of(&[f32::NAN], Dtype::F32),
        );
        w.set_rows(0, Dtype::F32, &good).unwrap();
        w.set_bias(0, Dtype::F32, &good).unwrap();
        w.set_rows(0, Dtype::F32, &bad).unwrap_err();
        assert!(w.check_complete().is_err());
        w.set_rows(0, Dtype::F32, &good).unwrap();
        w.set_bias(0, Dtype::F32, &bad).unwrap_err();
        assert!(w.check_complete().is_err());
    }

    #[test]
    fn values_too_large_for_the_storage_type_are_named() {
        let mut w = PackedLinear::new(2, 2, Dtype::F16, true).unwrap();
        let error = w
            .set_rows(0, Dtype::F32, &bytes_of(&[1.0, 7e4, 0.0, 0.0], Dtype::F32))
            .unwrap_err();
        assert_eq!(error.code(), "INVALID_CHECKPOINT");
        assert!(
            error
                .to_string()
                .starts_with("Row 0, column 1 of the weight is 7e4, too large for float16"),
            "{error}"
        );
        assert!(
            w.set_bias(0, Dtype::BF16, &bytes_of(&[-1e10, 0.0], Dtype::BF16))
                .is_err()
        );
        let mut w = PackedLinear::new(1, 1, Dtype::BF16, false).unwrap();
        assert!(
            w.set_rows(0, Dtype::F32, &bytes_of(&[f32::MAX], Dtype::F32))
                .is_err()
        );
    }

    #[test]
    fn a_weight_with_missing_rows_is_refused() {
        let mut w = PackedLinear::new(3, 1, Dtype::F32, true).unwrap();
        let one = bytes_of(&[1.0], Dtype::F32);
        w.set_rows(0, Dtype::F32, &one).unwrap();
        w.set_rows(2, Dtype::F32, &one).unwrap();
        assert!(
            w.check_complete()
                .unwrap_err()
                .to_string()
                .contains("Row 1")
        );
        w.set_rows(1, Dtype::F32, &one).unwrap();
        assert!(
            w.check_complete()
                .unwrap_err()
                .to_string()
                .contains("Element 0")
        );
        w.set_bias(0, Dtype::F32, &bytes_of(&[1.0; 3], Dtype::F32))
            .unwrap();
        w.check_complete().unwrap();
    }

    #[test]
    fn wrong_sizes_are_errors() {
        for (n, k) in [(0, 3), (3, 0)] {
            assert_eq!(
                PackedLinear::new(n, k, Dtype::F32, true)
                    .err()
                    .unwrap()
                    .code(),
                "INVALID_ARGUMENT"
            );
        }
        assert_eq!(
            PackedLinear::new(usize::MAX / 4, 8, Dtype::F32, true)
                .err()
                .unwrap()
                .code(),
            "OUT_OF_MEMORY"
        );
        assert_eq!(
            PackedLinear::new(usize::MAX, usize::MAX, Dtype::F16, true)
                .err()
                .unwrap()
                .code(),
            "OUT_OF_MEMORY"
        );
        let mut w = PackedLinear::new(3, 2, Dtype::F32, false).unwrap();
        for (row0, len) in [(0, 7), (0, 32), (2, 16), (3, 8), (usize::MAX, 8)] {
            assert_eq!(
                w.set_rows(row0, Dtype::F32, &vec![0; len])
                    .unwrap_err()
                    .code(),
                "INVALID_ARGUMENT"
            );
        }
        assert_eq!(
            w.set_rows(0, Dtype::I8, &[0; 2]).unwrap_err().code(),
            "UNSUPPORTED"
        );
        assert_eq!(
            w.set_bias(0, Dtype::F32, &[0; 4]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!(w.get_bias(), Ok(None));
        for (row0, rows) in [(0, 4), (3, 1), (usize::MAX, 2)] {
            assert_eq!(
                w.get_rows(row0, rows).unwrap_err().code(),
                "INVALID_ARGUMENT"
            );
        }
        let mut w = PackedLinear::new(3, 2, Dtype::F32, true).unwrap();
        for (offset, len) in [(0, 3), (0, 16), (3, 4), (usize::MAX, 4)] {
            assert_eq!(
                w.set_bias(offset, Dtype::F32, &vec![0; len])
                    .unwrap_err()
                    .code(),
                "INVALID_ARGUMENT"
            );
        }
    }
}
