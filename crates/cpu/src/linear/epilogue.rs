//! What is done with complete sums: the activation and the residual.

use vit_msn_tensor::Activation;

use crate::activation::activate_rows;
use crate::runtime::parallel::Rows;

/// What a layer does with its sums, to which the bias is added already.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub outputs: usize,
    pub act: Activation,
    /// `[rows, outputs]`
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Turns the sums in the first `columns` columns of `rows` rows into the layer's output, in place; `first` is the number
    /// of the first value among the layer's outputs.
    #[inline(never)]
    pub fn apply(&self, first: usize, rows: usize, columns: usize, target: &mut Rows<f32>) {
        activate_rows(self.act, target, rows, columns);
        if let Some(residual) = self.residual {
            let rows = target.each(rows, columns);
            add_rows(rows, &residual[first..], self.outputs);
        }
    }
}

/// Adds to each of `rows` the beginning of its row of `stride` values.
fn add_rows<'a>(rows: impl Iterator<Item = &'a mut [f32]>, others: &[f32], stride: usize) {
    for (row, others) in rows.zip(others.chunks(stride)) {
        for (value, other) in row.iter_mut().zip(others) {
            *value += other;
        }
    }
}
