//! Concatenation of the rows of two matrices.

use vit_msn_tensor::{Result, check_len};

/// out = the rows of x followed by those of y.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match.
pub fn concat_rows(x: &[f32], y: &[f32], out: &mut [f32]) -> Result<()> {
    check_len("The joined rows", out.len(), &[x.len() + y.len()])?;
    let (first, second) = out.split_at_mut(x.len());
    first.copy_from_slice(x);
    second.copy_from_slice(y);
    Ok(())
}

/// Splits the gradient into those with respect to x and y.
///
/// # Errors
/// INVALID_ARGUMENT when the lengths don't match.
pub fn concat_rows_backward(grad: &[f32], x: &mut [f32], y: &mut [f32]) -> Result<()> {
    check_len(
        "The gradient of joined rows",
        grad.len(),
        &[x.len() + y.len()],
    )?;
    let (first, second) = grad.split_at(x.len());
    x.copy_from_slice(first);
    y.copy_from_slice(second);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined_and_cut_apart() {
        let mut out = [f32::NAN; 5];
        concat_rows(&[1.0, 2.0], &[3.0, 4.0, 5.0], &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0, 3.0, 4.0, 5.0]);
        let (mut x, mut y) = ([f32::NAN; 4], [f32::NAN; 1]);
        concat_rows_backward(&out, &mut x, &mut y).unwrap();
        assert_eq!((x, y), ([1.0, 2.0, 3.0, 4.0], [5.0]));
        let errors = [
            concat_rows(&x, &y, &mut [0.0; 4]).unwrap_err(),
            concat_rows_backward(&out[1..], &mut x, &mut y).unwrap_err(),
        ];
        assert_eq!(errors.map(|error| error.code()), ["INVALID_ARGUMENT"; 2]);
    }
}
