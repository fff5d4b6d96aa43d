//! Checked arithmetic on shapes: sizes come from files and callers, so that products may overflow.

use crate::{Error, Result};

/// The number of elements of a shape; INVALID_ARGUMENT if it exceeds the address space.
pub fn numel(dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
        .ok_or_else(|| {
            Error::InvalidArgument(format!(
                "The shape {} has too many elements.",
                format_dims(dims)
            ))
        })
}

/// INVALID_ARGUMENT unless `len`, the length of the argument called `what`, fits the shape `dims`.
pub fn check_len(what: &str, len: usize, dims: &[usize]) -> Result<()> {
    let expected = numel(dims)?;
    if len == expected {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{what} has {len} elements, but its shape {} needs {expected}.",
        format_dims(dims)
    )))
}

/// A shape for messages: `[1, 197, 384]`.
pub fn format_dims(dims: &[usize]) -> String {
    format!("{dims:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_elements() {
        assert_eq!(numel(&[]), Ok(1));
        assert_eq!(numel(&[2, 3, 5]), Ok(30));
        assert_eq!(numel(&[2, 0, 5]), Ok(0));
    }

    #[test]
    fn overflow_is_an_error() {
        let error = numel(&[usize::MAX, 2]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        assert!(error.to_string().contains("too many elements"));
    }

    #[test]
    fn a_wrong_length_names_the_argument_and_the_shape() {
        assert_eq!(check_len("x", 6, &[2, 3]), Ok(()));
        let message = check_len("x", 5, &[2, 3]).unwrap_err().to_string();
        assert_eq!(message, "x has 5 elements, but its shape [2, 3] needs 6.");
    }
}
