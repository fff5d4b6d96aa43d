//! int8 weights: one scale per output, packed into the panels that the integer tile reads.

use std::ops::Range;

use vit_msn_tensor::{Error, Result, check_scale, quantise_row, try_vec};

use crate::linear::int8::byte_dot::{ByteDot, byte_dot};
use crate::linear::int8::quantise::{GROUP, MAX_DEPTH};
use crate::linear::int8::{PADDED_OUTPUTS, bytes_microkernel, words_microkernel};

/// The bytes of a cache line, so that no load straddles two.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([[i8; 32]; 2]);

/// The weight `[out_features, in_features]` of a linear layer as signed bytes, with a scale for each output.
///
/// The outputs are divided into panels of a few neighbours. For each group of inputs in turn, a panel holds the
/// weights of its outputs, with the weights of an output adjacent. The sizes of panels and groups are those of the
/// kernel that will multiply here.
pub(crate) struct QuantisedPanels {
    /// The dot product of bytes, if that kernel will multiply.
    dot: Option<ByteDot>,
    /// Number of inputs, padded.
    depth: usize,
    lines: Vec<Line>,
    /// Padded, as is `sums`.
    scales: Vec<f32>,
    /// The sum of each output's weights.
    sums: Vec<i32>,
}

/// Number of inputs that a panel's depth is padded to a multiple of: whole iterations of either kernel's loop.
const PADDED_INPUTS: usize = 16;

impl QuantisedPanels {
    /// A weight of zeros.
    ///
    /// # Errors
    /// UNSUPPORTED if sums could overflow int32, OUT_OF_MEMORY.
    pub fn new(out_features: usize, in_features: usize) -> Result<Self> {
        Self::with_dot(out_features, in_features, byte_dot())
    }

    /// A weight of zeros for a processor with such a dot product.
    ///
    /// # Errors
    /// Same as [`QuantisedPanels::new`].
    pub fn with_dot(out_features: usize, in_features: usize, dot: ByteDot) -> Result<Self> {
        if in_features > MAX_DEPTH {
            return Err(Error::Unsupported(format!(
                "A linear layer of {in_features} inputs can't have int8 weights, at most {MAX_DEPTH} inputs can: use dtype \"float16\"."
            )));
        }
        let depth = in_features.next_multiple_of(PADDED_INPUTS);
        let padded = out_features
            .checked_next_multiple_of(PADDED_OUTPUTS)
            .ok_or(Error::out_of_memory(out_features, depth))?;
        let lines = padded
            .checked_mul(depth)
            .ok_or(Error::out_of_memory(padded, depth))?
            / size_of::<Line>();
        Ok(Self {
            dot: dot.is_exact().then_some(dot),
            depth,
            lines: try_vec(lines)?,
            scales: try_vec(padded)?,
            sums: try_vec(padded)?,
        })
    }

    /// The dot product of bytes, if the kernel that uses it must multiply.
    pub fn dot(&self) -> Option<ByteDot> {
        self.dot
    }

    /// Size of the weights, scales and sums in bytes.
    pub fn byte_size(&self) -> usize {
        size_of_val(self.lines.as_slice())
            + size_of_val(self.scales.as_slice())
            + size_of_val(self.sums.as_slice())
    }

    /// Number of inputs, including padding.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The weights of some panels.
    pub fn panels(&self, panels: Range<usize>) -> &[i8] {
        let size = self.columns() * self.depth;
        &self.bytes()[panels.start * size..panels.end * size]
    }

    /// The scales of `count` outputs, starting at `output`; zero beyond the last output.
    pub fn scales(&self, output: usize, count: usize) -> &[f32] {
        &self.scales[output..output + count]
    }

    /// The scales of all outputs from `output` on; zero beyond the last.
    pub fn scales_from(&self, output: usize) -> &[f32] {
        &self.scales[output..]
    }

    /// The sums of the weights of all outputs from `output` on; zero beyond the last.
    pub fn sums_from(&self, output: usize) -> &[i32] {
        &self.sums[output..]
    }

    /// Number of outputs of a panel.
    fn columns(&self) -> usize {
        match self.dot {
            Some(_) => bytes_microkernel::NR,
            None => words_microkernel::NR,
        }
    }

    /// Number of inputs whose weights are adjacent.
    fn group(&self) -> usize {
        match self.dot {
            Some(_) => GROUP,
            None => words_microkernel::PAIR,
        }
    }

    /// Quantises a row of finite values: its largest magnitude becomes 127.
    pub fn quantise_row(&mut self, row: usize, values: &[f32]) {
        let (scale, weights) = quantise_row(values);
        self.scales[row] = scale;
        self.fill_row(row, weights);
    }

    /// Sets a row that is already quantised.
    ///
    /// # Errors
    /// INVALID_CHECKPOINT for a scale that isn't finite and positive.
    pub fn set_row(&mut self, row: usize, bytes: &[u8], scale: f32) -> Result<()> {
        check_scale(row, scale)?;
        self.scales[row] = scale;
        self.fill_row(row, bytes.iter().map(|&byte| byte as i8));
        Ok(())
    }

    /// A row's weights as signed bytes.
    pub fn get_row(&self, row: usize, out: &mut [u8]) {
        let (panel, row) = (row / self.columns(), row % self.columns());
        let panel = self.panels(panel..panel + 1);
        let step = self.columns() * self.group();
        let starts = (row * self.group()..).step_by(step);
        for (out, start) in out.chunks_mut(self.group()).zip(starts) {
            for (byte, &weight) in out.iter_mut().zip(&panel[start..]) {
                *byte = weight as u8;
            }
        }
    }

    fn fill_row(&mut self, row: usize, values: impl Iterator<Item = i8>) {
        // Constants, which make division a shift.
        self.sums[row] = match self.dot {
            Some(_) => self.scatter::<{ bytes_microkernel::NR }, GROUP>(row, values),
            None => {
                self.scatter::<{ words_microkernel::NR }, { words_microkernel::PAIR }>(row, values)
            }
        };
    }

    /// Writes a row's weights and returns their sum.
    fn scatter<const COLUMNS: usize, const GROUP: usize>(
        &mut self,
        row: usize,
        values: impl Iterator<Item = i8>,
    ) -> i32 {
        let size = COLUMNS * self.depth;
        let panel = &mut self.bytes_mut()[row / COLUMNS * size..][..size];
        let mut sum = 0;
        for (k, value) in values.enumerate() {
            panel[(k / GROUP * COLUMNS + row % COLUMNS) * GROUP + k % GROUP] = value;
            sum += i32::from(value);
        }
        sum
    }

    fn bytes(&self) -> &[i8] {
        let lines = self.lines.as_slice();
        // SAFETY: a Line is 64 bytes without padding, and bytes need no alignment.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    fn bytes_mut(&mut self) -> &mut [i8] {
        let lines = self.lines.as_mut_slice();
        // SAFETY: a Line is 64 bytes without padding, any bytes are a valid Line, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_are_within_half_a_step_and_come_back(
            n in 1usize..40, k in 1usize..70, seed in any::<u64>(), with_bytes in any::<bool>()
        ) {
            let weight = values(n * k, seed);
            let dot = if with_bytes { ByteDot::Signed } else { ByteDot::Missing };
            let mut panels = QuantisedPanels::with_dot(n, k, dot).unwrap();
            let mut copy = QuantisedPanels::with_dot(n, k, dot).unwrap();
            let mut bytes = vec![0; k];
            for (row, values) in weight.chunks_exact(k).enumerate() {
                panels.quantise_row(row, values);
            }
            for (row, values) in weight.chunks_exact(k).enumerate() {
                panels.get_row(row, &mut bytes);
                let scale = panels.scales(row, 1)[0];
                let sum: i32 = bytes.iter().map(|&byte| i32::from(byte as i8)).sum();
                prop_assert_eq!(panels.sums_from(row)[0], sum);
                for (value, &byte) in values.iter().zip(&bytes) {
                    prop_assert!((value - f32::from(byte as i8) * scale).abs() <= scale * 0.501);
                    prop_assert!(byte as i8 != i8::MIN);
                }
                copy.set_row(row, &bytes, scale).unwrap();
            }
            prop_assert_eq!(panels.bytes(), copy.bytes());
            prop_assert_eq!(panels.scales, copy.scales);
        }
    }

    #[test]
    fn extreme_rows() {
        let mut panels = QuantisedPanels::new(3, 2).unwrap();
        let mut bytes = [1; 2];
        for (values, expected) in [
            ([0.0, -0.0], [0, 0]),
            ([1e-45, 0.0], [0, 0]),
            ([f32::MAX, -f32::MAX], [127, -127]),
        ] {
            panels.quantise_row(1, &values);
            panels.get_row(1, &mut bytes);
            assert_eq!(bytes.map(|byte| byte as i8), expected);
            let scale = panels.scales(1, 1)[0];
            panels.set_row(2, &bytes, scale).unwrap();
        }
    }

    #[test]
    fn damaged_rows_are_errors() {
        let mut panels = QuantisedPanels::new(2, 2).unwrap();
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = panels.set_row(1, &[0, 0], scale).unwrap_err();
            assert_eq!(error.code(), "INVALID_CHECKPOINT");
            assert!(error.to_string().starts_with("The scale of row 1 is"));
        }
        panels.set_row(1, &[127, -128i8 as u8], 1.0).unwrap();
        assert_eq!(
            QuantisedPanels::new(1, MAX_DEPTH + 1).err().unwrap().code(),
            "UNSUPPORTED"
        );
        assert_eq!(
            QuantisedPanels::new(usize::MAX, 8).err().unwrap().code(),
            "OUT_OF_MEMORY"
        );
    }
}
