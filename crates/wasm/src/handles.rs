//! The handles that JavaScript holds: numbers that are never reused, so that a stale handle is an error and never
//! refers to another tensor.

use std::collections::BTreeMap;

use vit_msn_tensor::{Error, Result};

#[cfg(feature = "gpu")]
use vit_msn_gpu::{Activations, GpuHalves, Stored};

use vit_msn_tensor::Backend;

use crate::backend::{Device, LinearWeights, Tensor};

/// What a handle can refer to.
enum Object {
    Tensor(Tensor),
    Linear(LinearWeights),
    /// A result in the form of the only linear layer that reads it.
    #[cfg(feature = "gpu")]
    Halves(GpuHalves),
}

impl Object {
    fn what(&self) -> &'static str {
        match self {
            Object::Tensor(_) => "a tensor",
            Object::Linear(_) => "linear weights",
            #[cfg(feature = "gpu")]
            Object::Halves(_) => "a tensor stored for one linear layer only",
        }
    }

    fn byte_size(&self) -> f64 {
        match self {
            Object::Tensor(tensor) => tensor.byte_size() as f64,
            Object::Linear(weights) => weights.byte_size() as f64,
            #[cfg(feature = "gpu")]
            Object::Halves(halves) => halves.byte_size() as f64,
        }
    }
}

/// All live objects of this engine. Nearly every export looks up handles: `inline(never)` leaves one copy of that code
/// in the binary.
#[derive(Default)]
pub struct Handles {
    objects: BTreeMap<u32, Object>,
    last: u32,
}

impl Handles {
    /// A new handle for a tensor.
    #[inline(never)]
    pub fn add_tensor(&mut self, tensor: Tensor) -> Result<u32> {
        self.add(Object::Tensor(tensor))
    }

    /// A new handle for a linear layer's weights.
    pub fn add_linear(&mut self, weights: LinearWeights) -> Result<u32> {
        self.add(Object::Linear(weights))
    }

    #[inline(never)]
    fn add(&mut self, object: Object) -> Result<u32> {
        // After four billion tensors an error is better than a reused number.
        self.last = self.last.checked_add(1).ok_or_else(|| {
            Error::Unsupported("This engine has no handles left; load the model again.".to_string())
        })?;
        self.objects.insert(self.last, object);
        Ok(self.last)
    }

    /// The tensor of a handle.
    #[inline(never)]
    pub fn tensor(&self, handle: u32) -> Result<&Tensor> {
        match self.objects.get(&handle) {
            Some(Object::Tensor(tensor)) => Ok(tensor),
            Some(other) => Err(wrong_kind(handle, other.what(), "a tensor")),
            None => Err(stale(handle)),
        }
    }

    /// A tensor's shape, whatever form it is stored in.
    pub fn dims(&self, handle: u32) -> Result<&[usize]> {
        #[cfg(feature = "gpu")]
        if let Some(Object::Halves(halves)) = self.objects.get(&handle) {
            return Ok(halves.dims());
        }
        Ok(self.tensor(handle)?.dims())
    }

    /// The size in bytes of a handle's data.
    #[cfg(feature = "gpu")]
    pub fn byte_size(&self, handle: u32) -> Result<f64> {
        let object = self.objects.get(&handle).ok_or_else(|| stale(handle))?;
        Ok(object.byte_size())
    }

    /// A new handle for an op's result, whatever form it is stored in.
    #[cfg(feature = "gpu")]
    pub fn add_output(&mut self, output: Stored) -> Result<u32> {
        self.add(match output {
            Stored::Wide(tensor) => Object::Tensor(tensor),
            Stored::Halves(halves) => Object::Halves(halves),
        })
    }

    /// A new handle for an op's result.
    #[cfg(not(feature = "gpu"))]
    pub fn add_output(&mut self, output: Tensor) -> Result<u32> {
        self.add_tensor(output)
    }

    /// New handles for tensors.
    pub fn add_tensors(&mut self, tensors: impl IntoIterator<Item = Tensor>) -> Result<Vec<u32>> {
        let mut handles = Vec::new();
        for tensor in tensors {
            handles.push(self.add_tensor(tensor)?);
        }
        Ok(handles)
    }

    /// The tensors of several handles.
    #[inline(never)]
    pub fn tensors<const N: usize>(&self, handles: [u32; N]) -> Result<[&Tensor; N]> {
        let mut found = [None; N];
        for (found, handle) in found.iter_mut().zip(handles) {
            *found = Some(self.tensor(handle)?);
        }
        Ok(found.map(|tensor| tensor.unwrap_or_else(|| unreachable!("each was found above"))))
    }

    /// The tensor of an optional handle.
    #[inline(never)]
    pub fn optional_tensor(&self, handle: Option<u32>) -> Result<Option<&Tensor>> {
        handle.map(|handle| self.tensor(handle)).transpose()
    }

    /// The weights of an optional handle.
    pub fn reader(&self, handle: Option<u32>) -> Result<Option<&LinearWeights>> {
        handle.map(|handle| self.linear(handle)).transpose()
    }

    /// The input of a linear layer, whatever form it is stored in.
    pub fn input(&self, handle: u32) -> Result<<Device as Backend>::Input<'_>> {
        #[cfg(feature = "gpu")]
        return match self.objects.get(&handle) {
            Some(Object::Halves(halves)) => Ok(Activations::Halves(halves)),
            _ => self.tensor(handle).map(Activations::Wide),
        };
        #[cfg(not(feature = "gpu"))]
        self.tensor(handle)
    }

    /// The tensors of several handles, mutable.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if a handle is given twice.
    #[inline(never)]
    pub fn tensors_mut<const N: usize>(&mut self, handles: [u32; N]) -> Result<[&mut Tensor; N]> {
        for (index, &handle) in handles.iter().enumerate() {
            self.tensor(handle)?;
            if handles[..index].contains(&handle) {
                return Err(Error::InvalidArgument(format!(
                    "Handle {handle} is given twice to an op that writes to it."
                )));
            }
        }
        let mut found = [const { None }; N];
        for (handle, object) in &mut self.objects {
            let place = handles.iter().position(|other| other == handle);
            if let (Some(place), Object::Tensor(tensor)) = (place, object) {
                found[place] = Some(tensor);
            }
        }
        Ok(found.map(|tensor| tensor.unwrap_or_else(|| unreachable!("each was found above"))))
    }

    /// The weights of a handle, mutable, and the tensors of several handles to read.
    #[inline(never)]
    pub fn linear_mut_with<const N: usize>(
        &mut self,
        weights: u32,
        tensors: [u32; N],
    ) -> Result<(&mut LinearWeights, [&Tensor; N])> {
        self.linear(weights)?;
        for handle in tensors {
            self.tensor(handle)?;
        }
        let (mut layer, mut found) = (None, [None; N]);
        for (handle, object) in &mut self.objects {
            match object {
                Object::Linear(linear) if *handle == weights => layer = Some(linear),
                Object::Tensor(tensor) => {
                    if let Some(place) = tensors.iter().position(|other| other == handle) {
                        found[place] = Some(&*tensor);
                    }
                }
                _ => {}
            }
        }
        let unseen = || -> ! { unreachable!("each was found above") };
        Ok((
            layer.unwrap_or_else(|| unseen()),
            found.map(|tensor| tensor.unwrap_or_else(|| unseen())),
        ))
    }

    /// The weights of a handle.
    #[inline(never)]
    pub fn linear(&self, handle: u32) -> Result<&LinearWeights> {
        match self.objects.get(&handle) {
            Some(Object::Linear(weights)) => Ok(weights),
            Some(other) => Err(wrong_kind(handle, other.what(), "linear weights")),
            None => Err(stale(handle)),
        }
    }

    /// The weights of a handle, mutable.
    #[inline(never)]
    pub fn linear_mut(&mut self, handle: u32) -> Result<&mut LinearWeights> {
        match self.objects.get_mut(&handle) {
            Some(Object::Linear(weights)) => Ok(weights),
            Some(other) => Err(wrong_kind(handle, other.what(), "linear weights")),
            None => Err(stale(handle)),
        }
    }

    /// Drops the object of a handle.
    pub fn free(&mut self, handle: u32) -> Result<()> {
        self.objects
            .remove(&handle)
            .map(drop)
            .ok_or_else(|| stale(handle))
    }

    /// The number of live objects and the bytes of their data.
    pub fn live(&self) -> (usize, f64) {
        (
            self.objects.len(),
            self.objects.values().map(Object::byte_size).sum(),
        )
    }
}

fn stale(handle: u32) -> Error {
    Error::Disposed(format!(
        "Handle {handle} was freed or never existed: don't use a tensor after its scope has ended."
    ))
}

fn wrong_kind(handle: u32, found: &str, expected: &str) -> Error {
    Error::InvalidArgument(format!("Handle {handle} is {found}, expected {expected}."))
}

#[cfg(all(test, not(feature = "gpu")))]
mod tests {
    use super::*;

    #[test]
    fn a_freed_handle_is_an_error_and_its_number_is_not_reused() {
        let mut handles = Handles::default();
        let first = handles.add_tensor(Tensor::zeros(&[2]).unwrap()).unwrap();
        assert_eq!(handles.live(), (1, 8.0));
        handles.free(first).unwrap();
        assert_eq!(handles.live(), (0, 0.0));
        let second = handles.add_tensor(Tensor::zeros(&[2]).unwrap()).unwrap();
        assert_ne!(first, second);
        assert_eq!(handles.tensor(first).unwrap_err().code(), "DISPOSED");
        assert_eq!(handles.free(first).unwrap_err().code(), "DISPOSED");
        assert_eq!(
            handles.linear(second).err().unwrap().code(),
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn several_tensors_are_written_in_the_order_asked_for() {
        let mut handles = Handles::default();
        let [a, b, c] =
            [1, 2, 3].map(|size| handles.add_tensor(Tensor::zeros(&[size]).unwrap()).unwrap());
        let [x, y] = handles.tensors_mut([c, a]).unwrap();
        assert_eq!([x.dims(), y.dims()], [[3], [1]]);
        let error = handles.tensors_mut([a, b, a]).unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        let error = handles.tensors_mut([a, 99]).unwrap_err();
        assert_eq!(error.code(), "DISPOSED");
    }
}
