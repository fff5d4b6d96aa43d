//! What every backend's linear layer knows about its parameters: their shape, and which of them are set.

use std::ops::Range;

use crate::{Dtype, Error, Result, try_vec};

/// The shape of a linear layer's weight `[out_features, in_features]` and bias `[out_features]`, and which rows and
/// elements hold values. They may arrive in pieces and in any order. Beginning a piece checks it and marks its range as
/// missing; finishing it, once its values are written, marks the range as set.
pub struct LinearParameters {
    in_features: usize,
    /// One per output.
    rows_set: Vec<bool>,
    /// One per output; empty if the layer has no bias.
    bias_set: Vec<bool>,
}

impl LinearParameters {
    /// Parameters of which none is set.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a zero size, OUT_OF_MEMORY.
    pub fn new(out_features: usize, in_features: usize, has_bias: bool) -> Result<Self> {
        if out_features == 0 || in_features == 0 {
            return Err(Error::InvalidArgument(format!(
                "A linear layer's weight can't have the shape [{out_features}, {in_features}]: both sizes must be at least 1."
            )));
        }
        Ok(Self {
            in_features,
            rows_set: try_vec(out_features)?,
            bias_set: try_vec(if has_bias { out_features } else { 0 })?,
        })
    }

    /// N: the number of outputs.
    pub fn out_features(&self) -> usize {
        self.rows_set.len()
    }

    /// K: the number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Whether the layer adds a bias.
    pub fn has_bias(&self) -> bool {
        !self.bias_set.is_empty()
    }

    /// The rows, starting at `row0`, that `bytes` bytes of type `source` fill.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if they aren't whole rows or are too many.
    pub fn begin_rows(&mut self, row0: usize, source: Dtype, bytes: usize) -> Result<Range<usize>> {
        let row_bytes = self.in_features.saturating_mul(source.size());
        let rows = bytes / row_bytes;
        if !bytes.is_multiple_of(row_bytes) || !self.has_rows(row0, rows) {
            return Err(Error::InvalidArgument(format!(
                "{bytes} bytes of {} at row {row0} don't fit a weight of shape {}.",
                source.name(),
                self.shape()
            )));
        }
        self.rows_set[row0..row0 + rows].fill(false);
        Ok(row0..row0 + rows)
    }

    /// The rows, starting at `row0`, that `weights` signed bytes fill, with `scales` bytes of float32 scales.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if they aren't whole rows, are too many, or differ in number from the scales.
    pub fn begin_quantised_rows(
        &mut self,
        row0: usize,
        weights: usize,
        scales: usize,
    ) -> Result<Range<usize>> {
        let rows = weights / self.in_features;
        if !weights.is_multiple_of(self.in_features)
            || Some(scales) != rows.checked_mul(size_of::<f32>())
            || !self.has_rows(row0, rows)
        {
            return Err(Error::InvalidArgument(format!(
                "{weights} int8 weights and {scales} bytes of scales at row {row0} don't fit a weight of shape {}.",
                self.shape()
            )));
        }
        self.rows_set[row0..row0 + rows].fill(false);
        Ok(row0..row0 + rows)
    }

    /// The bias elements, starting at `offset`, that `bytes` bytes of type `source` fill.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if they aren't whole elements or are too many, or if the layer has no bias.
    pub fn begin_bias(
        &mut self,
        offset: usize,
        source: Dtype,
        bytes: usize,
    ) -> Result<Range<usize>> {
        let count = bytes / source.size();
        if !self.has_bias() || !bytes.is_multiple_of(source.size()) || !self.has_rows(offset, count)
        {
            return Err(Error::InvalidArgument(format!(
                "{bytes} bytes of {} at element {offset} don't fit a bias of {} elements.",
                source.name(),
                self.bias_set.len()
            )));
        }
        self.bias_set[offset..offset + count].fill(false);
        Ok(offset..offset + count)
    }

    /// Marks these rows as set.
    pub fn finish_rows(&mut self, rows: Range<usize>) {
        self.rows_set[rows].fill(true);
    }

    /// Marks these bias elements as set.
    pub fn finish_bias(&mut self, elements: Range<usize>) {
        self.bias_set[elements].fill(true);
    }

    /// INVALID_ARGUMENT unless the layer has `rows` rows starting at `row0`.
    pub fn check_rows(&self, row0: usize, rows: usize) -> Result<()> {
        if self.has_rows(row0, rows) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "A weight of shape {} doesn't have all of the rows {row0} to {row0} + {rows}.",
            self.shape()
        )))
    }

    /// INVALID_ARGUMENT unless every row and every bias element is set.
    pub fn check_complete(&self) -> Result<()> {
        let missing = |set: &[bool]| set.iter().position(|set| !set);
        let what = match (missing(&self.rows_set), missing(&self.bias_set)) {
            (Some(row), _) => format!("Row {row} of a weight"),
            (None, Some(element)) => format!("Element {element} of a bias"),
            (None, None) => return Ok(()),
        };
        Err(Error::InvalidArgument(format!("{what} was never set.")))
    }

    /// The position of value `index` of the rows starting at `row0`, for messages.
    pub fn place_in_weight(&self, row0: usize, index: usize) -> String {
        let (row, column) = (row0 + index / self.in_features, index % self.in_features);
        format!("Row {row}, column {column} of the weight")
    }

    /// The position of bias element `index`, for messages.
    pub fn place_in_bias(&self, index: usize) -> String {
        format!("Element {index} of the bias")
    }

    fn has_rows(&self, row0: usize, rows: usize) -> bool {
        let end = row0.checked_add(rows);
        end.is_some_and(|end| end <= self.out_features())
    }

    fn shape(&self) -> String {
        format!("[{}, {}]", self.out_features(), self.in_features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence<T>(result: Result<T>) -> String {
        result.err().map_or(String::new(), |error| {
            assert_eq!(error.code(), "INVALID_ARGUMENT");
            error.to_string()
        })
    }

    #[test]
    fn what_was_begun_is_missing_until_it_is_finished() {
        let mut layer = LinearParameters::new(3, 2, true).unwrap();
        assert_eq!((layer.out_features(), layer.in_features()), (3, 2));
        let rows = layer.begin_rows(1, Dtype::F16, 8).unwrap();
        assert_eq!(rows, 1..3);
        layer.finish_rows(rows);
        assert_eq!(
            sentence(layer.check_complete()),
            "Row 0 of a weight was never set."
        );
        let rows = layer.begin_quantised_rows(0, 6, 12).unwrap();
        layer.finish_rows(rows);
        let elements = layer.begin_bias(1, Dtype::F32, 8).unwrap();
        layer.finish_bias(elements);
        assert_eq!(
            sentence(layer.check_complete()),
            "Element 0 of a bias was never set."
        );
        let elements = layer.begin_bias(0, Dtype::BF16, 2).unwrap();
        layer.finish_bias(elements);
        layer.check_complete().unwrap();
        layer.begin_rows(2, Dtype::F32, 8).unwrap();
        assert_eq!(
            sentence(layer.check_complete()),
            "Row 2 of a weight was never set."
        );
        assert_eq!(layer.place_in_weight(1, 3), "Row 2, column 1 of the weight");
    }

    #[test]
    fn pieces_that_do_not_fit_are_errors() {
        for (outputs, inputs) in [(0, 3), (3, 0)] {
            assert!(sentence(LinearParameters::new(outputs, inputs, true)).contains("at least 1"));
        }
        let mut layer = LinearParameters::new(3, 2, true).unwrap();
        for (row0, bytes) in [(0, 7), (0, 32), (2, 16), (3, 8), (usize::MAX, 8)] {
            assert!(sentence(layer.begin_rows(row0, Dtype::F32, bytes)).contains("[3, 2]"));
        }
        for (row0, weights, scales) in [(0, 3, 4), (0, 4, 4), (2, 4, 8), (usize::MAX, 2, 4)] {
            let begun = layer.begin_quantised_rows(row0, weights, scales);
            assert!(sentence(begun).contains("[3, 2]"));
        }
        for (offset, bytes) in [(0, 3), (0, 16), (3, 4), (usize::MAX, 4)] {
            assert!(sentence(layer.begin_bias(offset, Dtype::F32, bytes)).contains("3 elements"));
        }
        for (row0, rows) in [(0, 4), (3, 1), (usize::MAX, 2)] {
            assert!(sentence(layer.check_rows(row0, rows)).contains("[3, 2]"));
        }
        let mut layer = LinearParameters::new(3, 2, false).unwrap();
        assert!(!layer.has_bias());
        assert!(sentence(layer.begin_bias(0, Dtype::F32, 4)).contains("0 elements"));
    }
}
