//! int8 weights: one scale per output, packed into the panels that the integer tile reads.

use vit_msn_tensor::{Error, Result, check_scale, quantise_row, try_vec};

use crate::linear::int8_microkernel::{MAX_DEPTH, NR, PAIR};

/// The bytes of a cache line, so that no load straddles two.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([[i8; 32]; 2]);

/// The weight `[out_features, in_features]` of a linear layer as signed bytes, with a scale for each output.
///
/// The outputs are divided into panels of 8. For each pair of inputs in turn, a panel holds the weights of its
/// outputs, with the two weights of an output adjacent.
pub(crate) struct QuantisedPanels {
    /// Number of inputs, padded to whole cache lines of a panel.
    depth: usize,
    lines: Vec<Line>,
    /// Padded to whole panels.
    scales: Vec<f32>,
}

impl QuantisedPanels {
    /// A weight of zeros.
    ///
    /// # Errors
    /// UNSUPPORTED if sums could overflow int32, OUT_OF_MEMORY.
    pub fn new(out_features: usize, in_features: usize) -> Result<Self> {
        if in_features > MAX_DEPTH {
            return Err(Error::Unsupported(format!(
                "A linear layer of {in_features} inputs can't have int8 weights, at most {MAX_DEPTH} inputs can: use dtype \"float16\"."
            )));
        }
        let depth = in_features.next_multiple_of(size_of::<Line>() / NR);
        let panels = out_features.div_ceil(NR);
        let lines = panels
            .checked_mul(depth * NR / size_of::<Line>())
            .ok_or(Error::out_of_memory(panels, depth * NR))?;
        Ok(Self {
            depth,
            lines: try_vec(lines)?,
            // The epilogue processes two panels at a time.
            scales: try_vec(out_features.next_multiple_of(2 * NR))?,
        })
    }

    /// Size of the weights and scales in bytes.
    pub fn byte_size(&self) -> usize {
        size_of_val(self.lines.as_slice()) + size_of_val(self.scales.as_slice())
    }

    /// Number of inputs, including padding.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The weights of a panel.
    pub fn panel(&self, panel: usize) -> &[i8] {
        &self.bytes()[panel * NR * self.depth..][..NR * self.depth]
    }

    /// The scales of `count` outputs, starting at `output`; zero beyond the last output.
    pub fn scales(&self, output: usize, count: usize) -> &[f32] {
        &self.scales[output..output + count]
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
        let panel = self.panel(row / NR);
        for (k, byte) in out.iter_mut().enumerate() {
            *byte = panel[place(row, k)] as u8;
        }
    }

    fn fill_row(&mut self, row: usize, values: impl Iterator<Item = i8>) {
        let size = NR * self.depth;
        let panel = &mut self.bytes_mut()[row / NR * size..][..size];
        for (k, value) in values.enumerate() {
            panel[place(row, k)] = value;
        }
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

/// Index of a row's weight for input k in its panel.
#[inline(always)]
fn place(row: usize, k: usize) -> usize {
    (k / PAIR * NR + row % NR) * PAIR + k % PAIR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::values;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_are_within_half_a_step_and_come_back(n in 1usize..40, k in 1usize..70, seed in any::<u64>()) {
            let weight = values(n * k, seed);
            let mut panels = QuantisedPanels::new(n, k).unwrap();
            let mut copy = QuantisedPanels::new(n, k).unwrap();
            let mut bytes = vec![0; k];
            for (row, values) in weight.chunks_exact(k).enumerate() {
                panels.quantise_row(row, values);
            }
            for (row, values) in weight.chunks_exact(k).enumerate() {
                panels.get_row(row, &mut bytes);
                let scale = panels.scales(row, 1)[0];
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
