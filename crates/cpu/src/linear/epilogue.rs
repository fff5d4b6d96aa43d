//! The epilogue applied to complete sums: the activation and the residual.

use vit_msn_tensor::Activation;

use crate::activation::{activate_rows, activate_rows_with_rough_gelu};
use crate::runtime::parallel::Rows;

/// What a layer applies to its sums, which already include the bias.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub outputs: usize,
    pub act: Activation,
    /// Whether the sums are of int8 products, for whose error a rough GELU is exact enough.
    pub is_rough: bool,
    /// `[rows, outputs]`
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Applies the epilogue in place to the first `columns` columns of `rows` rows; `first` is the index of the
    /// first value in the layer's output.
    #[inline(never)]
    pub fn apply(&self, first: usize, rows: usize, columns: usize, target: &mut Rows<f32>) {
        match self.act {
            Activation::Gelu if self.is_rough => {
                activate_rows_with_rough_gelu(target, rows, columns);
            }
            act => activate_rows(act, target, rows, columns),
        }
        if let Some(residual) = self.residual {
            let rows = target.each(rows, columns);
            add_rows(rows, &residual[first..], self.outputs);
        }
    }
}

/// Adds to each of `rows` the start of the matching row of `others`, whose rows are `stride` values apart.
fn add_rows<'a>(rows: impl Iterator<Item = &'a mut [f32]>, others: &[f32], stride: usize) {
    for (row, others) in rows.zip(others.chunks(stride)) {
        for (value, other) in row.iter_mut().zip(others) {
            *value += other;
        }
    }
}
