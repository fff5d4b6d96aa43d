//! The weight of a linear layer, packed once into the order in which the GEMM reads it.

use std::ops::Range;

use vit_msn_tensor::{Dtype, Error, LinearParameters, Result, check_scale, try_vec};

use crate::linear::int8::{PADDED_OUTPUTS, QuantisedPanels};
use crate::linear::microkernel::{NR, Panels as PanelBlocks};
use crate::runtime::simd::{F32x4, LANES};

/// One row of a panel: for one input, the weights of NR outputs. Aligned so that no vector load straddles two
/// cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Row([f32; NR]);

/// A [`Row`] in float16 or bfloat16 bits.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct HalfRow([u16; NR]);

// A slice of rows is also read as a slice of values, so a row must have no padding.
const _: () = assert!(size_of::<Row>() == NR * size_of::<f32>());
const _: () = assert!(size_of::<HalfRow>() == NR * size_of::<u16>());

enum Panels {
    Full(Vec<Row>),
    Half(Vec<HalfRow>),
    Quantised(QuantisedPanels),
}

/// Number of inputs of a weight row scattered at a time, so that this part of the panel stays in the L1 cache.
const SCATTER: usize = 64;

/// The weight `[out_features, in_features]` and bias `[out_features]` of a linear layer.
///
/// The outputs are divided into panels of NR. For each input in turn, a panel holds the NR weights of its
/// outputs; the last panel is padded with zeros. Half-width weights are stored half-width and widened one block
/// at a time while the GEMM runs. Rows may arrive in any order and in pieces, so loading never needs a second
/// copy. Using a weight with missing rows is an error.
pub struct PackedLinear {
    parameters: LinearParameters,
    dtype: Dtype,
    panels: Panels,
    /// Padded to whole panels of any kernel. Rounded to `dtype`, but stored as float32: it is small and initialises every
    /// accumulator.
    bias: Vec<f32>,
}

impl PackedLinear {
    /// An empty weight of shape `[out_features, in_features]`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a zero size, UNSUPPORTED if int8 sums could overflow, OUT_OF_MEMORY.
    pub fn new(
        out_features: usize,
        in_features: usize,
        dtype: Dtype,
        has_bias: bool,
    ) -> Result<Self> {
        let parameters = LinearParameters::new(out_features, in_features, has_bias)?;
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
            parameters,
            dtype,
            panels,
            bias: try_vec((panel_count * NR).next_multiple_of(PADDED_OUTPUTS))?,
        })
    }

    /// An int8 weight with a bias for a processor with such a dot product of bytes.
    #[cfg(test)]
    pub(crate) fn quantised_for(
        dot: crate::ByteDot,
        out_features: usize,
        in_features: usize,
    ) -> Self {
        let mut weight = Self::new(out_features, in_features, Dtype::I8, true).unwrap();
        weight.panels =
            Panels::Quantised(QuantisedPanels::with_dot(out_features, in_features, dot).unwrap());
        weight
    }

    /// A float32 right operand of a single product, without a bias. The caller fills it through
    /// [`PackedLinear::panels_mut`].
    ///
    /// # Errors
    /// Same as [`PackedLinear::new`].
    pub(crate) fn operand(out_features: usize, in_features: usize) -> Result<Self> {
        let mut operand = Self::new(out_features, in_features, Dtype::F32, false)?;
        operand.parameters.finish_rows(0..out_features);
        Ok(operand)
    }

    /// The contiguous panels of float32 storage; empty for other types.
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

    /// Whether the layer adds a bias.
    pub fn has_bias(&self) -> bool {
        self.parameters.has_bias()
    }

    /// Size of the weight and the bias in bytes.
    pub fn byte_size(&self) -> usize {
        let panels = match &self.panels {
            Panels::Full(rows) => size_of_val(rows.as_slice()),
            Panels::Half(rows) => size_of_val(rows.as_slice()),
            Panels::Quantised(panels) => panels.byte_size(),
        };
        panels + size_of_val(self.bias.as_slice())
    }

    /// Sets whole rows, starting at `row0`, from `bytes`: little-endian row-major values of the floating-point
    /// type `source`. int8 storage quantises them.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the bytes aren't a whole number of rows or there are too many. INVALID_CHECKPOINT
    /// naming the first value that isn't finite or doesn't fit the storage type.
    pub fn set_rows(&mut self, row0: usize, source: Dtype, bytes: &[u8]) -> Result<()> {
        let rows = self.parameters.begin_rows(row0, source, bytes.len())?;
        let place = Place {
            row0,
            depth: self.in_features(),
        };
        let finite = match &mut self.panels {
            Panels::Full(panels) => scatter(panels, place, source, self.dtype, bytes)?,
            Panels::Half(panels) => scatter(panels, place, source, self.dtype, bytes)?,
            Panels::Quantised(panels) => quantise(panels, place, source, bytes)?,
        };
        if !finite {
            return Err(self.find_unfit(row0, source, bytes));
        }
        self.parameters.finish_rows(rows);
        Ok(())
    }

    /// Sets rows that are already quantised, starting at `row0`: signed bytes, and a little-endian float32
    /// scale for each row. int8 storage takes them unchanged; other types store the products.
    ///
    /// # Errors
    /// Same as [`PackedLinear::set_rows`], and INVALID_CHECKPOINT for a scale that isn't finite and positive.
    pub fn set_quantised_rows(&mut self, row0: usize, bytes: &[u8], scales: &[u8]) -> Result<()> {
        let rows = self
            .parameters
            .begin_quantised_rows(row0, bytes.len(), scales.len())?;
        let (scales, _) = scales.as_chunks::<4>();
        let weights = bytes.chunks_exact(self.in_features());
        for ((row, weights), scale) in rows.clone().zip(weights).zip(scales) {
            self.set_quantised_row(row, weights, f32::from_le_bytes(*scale))?;
        }
        self.parameters.finish_rows(rows);
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

    /// The scales of `rows` int8 rows, starting at `row0`, as little-endian float32.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for rows that don't exist or another storage type, OUT_OF_MEMORY.
    pub fn get_scales(&self, row0: usize, rows: usize) -> Result<Vec<u8>> {
        self.parameters.check_rows(row0, rows)?;
        match &self.panels {
            Panels::Quantised(panels) => Dtype::F32.encode(panels.scales(row0, rows)),
            _ => Err(Error::InvalidArgument(format!(
                "Only int8 weights have scales; this weight is {}.",
                self.dtype.name()
            ))),
        }
    }

    /// Sets the bias, starting at element `offset`.
    ///
    /// # Errors
    /// Same as [`PackedLinear::set_rows`], and INVALID_ARGUMENT if the layer has no bias.
    pub fn set_bias(&mut self, offset: usize, source: Dtype, bytes: &[u8]) -> Result<()> {
        let elements = self.parameters.begin_bias(offset, source, bytes.len())?;
        let (target, parameters) = (&mut self.bias[elements.clone()], &self.parameters);
        source.decode_rounded(bytes, self.dtype, target, |index| {
            parameters.place_in_bias(offset + index)
        })?;
        self.parameters.finish_bias(elements);
        Ok(())
    }

    /// `rows` rows, starting at `row0`, as little-endian row-major bytes of the storage type.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for rows that don't exist, OUT_OF_MEMORY.
    pub fn get_rows(&self, row0: usize, rows: usize) -> Result<Vec<u8>> {
        self.parameters.check_rows(row0, rows)?;
        let mut bytes = try_vec(rows * self.in_features() * self.dtype.size())?;
        let place = Place {
            row0,
            depth: self.in_features(),
        };
        match &self.panels {
            Panels::Full(panels) => gather(panels, place, &mut bytes, |row, lane| {
                row.0[lane].to_le_bytes()
            }),
            Panels::Half(panels) => gather(panels, place, &mut bytes, |row, lane| {
                row.0[lane].to_le_bytes()
            }),
            Panels::Quantised(panels) => {
                for (offset, target) in bytes.chunks_exact_mut(self.in_features()).enumerate() {
                    panels.get_row(row0 + offset, target);
                }
            }
        }
        Ok(bytes)
    }

    /// The bias as little-endian bytes of [`PackedLinear::bias_dtype`]; None if the layer has none.
    ///
    /// # Errors
    /// OUT_OF_MEMORY.
    pub fn get_bias(&self) -> Result<Option<Vec<u8>>> {
        self.has_bias()
            .then(|| self.bias_dtype().encode(&self.bias[..self.out_features()]))
            .transpose()
    }

    /// The type that the bias is rounded to: the storage type, or float32 for int8 weights.
    pub fn bias_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::I8 => Dtype::F32,
            dtype => dtype,
        }
    }

    /// Checks that every row and every element of the bias is set; INVALID_ARGUMENT otherwise.
    pub fn check_complete(&self) -> Result<()> {
        self.parameters.check_complete()
    }

    /// Whether the weights are float32, which the GEMM reads in place.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.panels, Panels::Full(_))
    }

    /// The biases of the given panels, NR values each; zeros if there is no bias.
    pub(crate) fn panel_biases(&self, panels: Range<usize>) -> &[f32] {
        &self.bias[panels.start * NR..panels.end * NR]
    }

    /// The bias, padded with zeros to whole panels of any kernel.
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

    /// Some inputs of some panels as float32: a view of the stored values, or for a half-width weight, the
    /// values widened into `scratch`, which must be large enough.
    pub(crate) fn panel_blocks<'a>(
        &'a self,
        panels: Range<usize>,
        inputs: Range<usize>,
        scratch: &'a mut [f32],
    ) -> PanelBlocks<'a> {
        let depth = inputs.len();
        match &self.panels {
            Panels::Full(rows) => {
                let rows =
                    &rows[panels.start * self.in_features()..panels.end * self.in_features()];
                // SAFETY: a Row is exactly NR floats without padding (a multiple of 32 bytes, aligned to 32).
                let values: &[f32] =
                    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len() * NR) };
                PanelBlocks {
                    values: &values[inputs.start * NR..],
                    stride: self.in_features() * NR,
                    depth,
                }
            }
            Panels::Half(rows) => {
                let blocks = scratch.chunks_exact_mut(depth * NR);
                for (panel, target) in panels.zip(blocks) {
                    let first = panel * self.in_features() + inputs.start;
                    widen(&rows[first..first + depth], self.dtype, target);
                }
                PanelBlocks {
                    values: scratch,
                    stride: depth * NR,
                    depth,
                }
            }
            Panels::Quantised(_) => unreachable!("int8 weights have their own kernel"),
        }
    }

    /// The error for the first value of `bytes` that the storage type can't represent.
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
        let place = self.parameters.place_in_weight(row0, index);
        self.dtype.unfit(&place, value)
    }
}

/// The first row of a range of weight rows, and the number of inputs of each.
#[derive(Clone, Copy)]
struct Place {
    row0: usize,
    depth: usize,
}

/// Quantises rows of any floating-point type; false when a value isn't finite.
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

/// A row of a panel, generic over the storage type.
trait Lanes<const SIZE: usize> {
    /// Sets one lane from little-endian bytes.
    fn set(&mut self, lane: usize, bytes: [u8; SIZE]);
}

impl Lanes<4> for Row {
    fn set(&mut self, lane: usize, bytes: [u8; 4]) {
        self.0[lane] = f32::from_le_bytes(bytes);
    }
}

impl Lanes<2> for HalfRow {
    fn set(&mut self, lane: usize, bytes: [u8; 2]) {
        self.0[lane] = u16::from_le_bytes(bytes);
    }
}

/// Writes rows into their lanes of the panels, rounded to `storage`, whose values are SIZE bytes each. Returns
/// false when a rounded value isn't finite. The caller has checked that the rows exist.
fn scatter<R: Lanes<SIZE>, const SIZE: usize>(
    panels: &mut [R],
    place: Place,
    source: Dtype,
    storage: Dtype,
    bytes: &[u8],
) -> Result<bool> {
    let row_bytes = place.depth * source.size();
    let end = place.row0 + bytes.len() / row_bytes;
    let (mut wide, mut rounded) = ([0.0; SCATTER], [[0; SIZE]; SCATTER]);
    let mut all_finite = true;
    let mut row = place.row0;
    while row < end {
        let panel = row / NR;
        let panel_end = end.min((panel + 1) * NR);
        for k0 in (0..place.depth).step_by(SCATTER) {
            let count = SCATTER.min(place.depth - k0);
            let block = &mut panels[panel * place.depth + k0..][..count];
            for r in row..panel_end {
                let first = (r - place.row0) * row_bytes + k0 * source.size();
                let taken = &bytes[first..][..count * source.size()];
                let values = if source == storage {
                    taken.as_chunks::<SIZE>().0
                } else {
                    source.decode(taken, &mut wide[..count])?;
                    let rounded = &mut rounded[..count];
                    storage.encode_into(&wide[..count], rounded.as_flattened_mut())?;
                    rounded
                };
                all_finite &= storage.are_finite(values.as_flattened());
                for (target, &value) in block.iter_mut().zip(values) {
                    target.set(r % NR, value);
                }
            }
        }
        row = panel_end;
    }
    Ok(all_finite)
}

/// The inverse of [`scatter`].
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
        assert_eq!(w.byte_size(), 64 * 128 + 3 * 64 * 4);
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
                .starts_with("Row 0, column 1 of the weight is 70000, too large for float16"),
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
