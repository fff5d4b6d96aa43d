//! Activations: contiguous row-major float32.

use crate::{Error, Result, check_len, numel};

/// `count` default elements. Returns OUT_OF_MEMORY if memory is exhausted, where `vec!` would abort the engine.
pub fn try_vec<T: Copy + Default>(count: usize) -> Result<Vec<T>> {
    let mut data = Vec::new();
    data.try_reserve_exact(count)
        .map_err(|_| Error::out_of_memory(count, size_of::<T>()))?;
    data.resize(count, T::default());
    Ok(data)
}

/// A float32 tensor, row-major and contiguous. `dims` may be empty (a scalar) and may contain zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    dims: Vec<usize>,
    data: Vec<f32>,
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a shape that overflows, OUT_OF_MEMORY.
    pub fn zeros(dims: &[usize]) -> Result<Self> {
        Ok(Self {
            dims: dims.to_vec(),
            data: try_vec(numel(dims)?)?,
        })
    }

    /// A tensor of shape `dims` that owns `data`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the length doesn't fit.
    pub fn from_vec(dims: &[usize], data: Vec<f32>) -> Result<Self> {
        check_len("The data", data.len(), dims)?;
        Ok(Self {
            dims: dims.to_vec(),
            data,
        })
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The elements, row-major and mutable.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The elements, without the shape.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// The size of the elements in bytes.
    pub fn byte_size(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_has_the_shape_and_the_zeros() {
        let tensor = Tensor::zeros(&[2, 3]).unwrap();
        assert_eq!(tensor.dims(), [2, 3]);
        assert_eq!(tensor.data(), [0.0; 6]);
        assert_eq!(tensor.byte_size(), 24);
    }

    #[test]
    fn from_vec_checks_the_length() {
        assert_eq!(
            Tensor::from_vec(&[2], vec![1.0, 2.0]).unwrap().into_vec(),
            [1.0, 2.0]
        );
        assert_eq!(
            Tensor::from_vec(&[3], vec![1.0]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn a_full_memory_is_an_error_and_no_abort() {
        assert_eq!(
            Tensor::zeros(&[usize::MAX / 8]).unwrap_err().code(),
            "OUT_OF_MEMORY"
        );
        assert_eq!(
            try_vec::<f32>(usize::MAX).unwrap_err().code(),
            "OUT_OF_MEMORY"
        );
    }

    #[test]
    fn an_overflowing_shape_is_an_error() {
        assert_eq!(
            Tensor::zeros(&[usize::MAX, 3]).unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }
}
