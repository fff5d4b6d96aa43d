//! Device memory: tensors, and the pool that their buffers come from and go back to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use vit_msn_tensor::{Error, Result, format_dims, numel};

use crate::context::Context;

/// The smallest buffer: what uniform offsets are aligned to, and small enough not to matter.
const MIN_CLASS: u64 = 256;

/// Bytes of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In living tensors, by their size classes.
    pub live: u64,
    /// In all buffers of the pool, used or free.
    pub reserved: u64,
}

/// Buffers by size class. A freed buffer serves the next tensor of its class: commands run in the order in which they
/// were recorded, so whoever used it before is done by then.
#[derive(Default)]
pub(crate) struct BufferPool {
    free: BTreeMap<u64, Vec<wgpu::Buffer>>,
    live: u64,
    reserved: u64,
}

impl BufferPool {
    pub fn memory(&self) -> Memory {
        Memory {
            live: self.live,
            reserved: self.reserved,
        }
    }

    /// Gives the free buffers back to the device.
    pub fn trim(&mut self) {
        self.free.clear();
        self.reserved = self.live;
    }

    fn take(&mut self, context: &Context, class: u64) -> Result<wgpu::Buffer> {
        let buffer = match self.free.get_mut(&class).and_then(Vec::pop) {
            Some(buffer) => buffer,
            None => {
                let buffer = new_buffer(context, class)?;
                self.reserved += class;
                buffer
            }
        };
        self.live += class;
        Ok(buffer)
    }

    fn give_back(&mut self, buffer: wgpu::Buffer) {
        let class = buffer.size();
        self.live -= class;
        self.free.entry(class).or_default().push(buffer);
    }
}

fn new_buffer(context: &Context, size: u64) -> Result<wgpu::Buffer> {
    context.checked(&format!("{size} bytes of tensors"), || {
        context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("tensor"),
            size,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    })
}

/// Four classes an octave: at most a quarter more than what was asked for.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(1).ilog2()).saturating_sub(2);
    bytes.next_multiple_of(1 << step).max(MIN_CLASS)
}

/// A float32 tensor on the device, row-major and contiguous. Dropping it returns its buffer to the pool.
pub struct GpuTensor {
    dims: Vec<usize>,
    buffer: wgpu::Buffer,
    pool: Rc<RefCell<BufferPool>>,
}

impl GpuTensor {
    /// A tensor of whatever its buffer held last.
    /// Errors: INVALID_ARGUMENT for a shape without elements, UNSUPPORTED when it is larger than one binding may be,
    /// OUT_OF_MEMORY.
    pub(crate) fn uninit(
        context: &Context,
        pool: &Rc<RefCell<BufferPool>>,
        dims: &[usize],
    ) -> Result<Self> {
        let bytes = (numel(dims)? as u64).saturating_mul(4);
        if bytes == 0 {
            return Err(Error::InvalidArgument(format!(
                "A tensor on the GPU needs at least one element, and {} has none.",
                format_dims(dims)
            )));
        }
        let limits = context.limits();
        if bytes > limits.max_storage_buffer_binding_size {
            return Err(Error::Unsupported(format!(
                "A tensor {} takes {bytes} bytes, and this GPU device binds {} at most: use a smaller batch or picture.",
                format_dims(dims),
                limits.max_storage_buffer_binding_size
            )));
        }
        let class = size_class(bytes).min(limits.max_buffer_size);
        let buffer = pool.borrow_mut().take(context, class)?;
        Ok(Self {
            dims: dims.to_vec(),
            buffer,
            pool: Rc::clone(pool),
        })
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub(crate) fn byte_size(&self) -> u64 {
        self.len() as u64 * 4
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Errors: INVALID_ARGUMENT, calling the tensor `what`, unless it has this shape.
    pub(crate) fn expect(&self, what: &str, dims: &[usize]) -> Result<()> {
        if self.dims == dims {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "{what} has the shape {}, expected {}.",
            format_dims(&self.dims),
            format_dims(dims)
        )))
    }

    /// The last dimension and the number of rows of that width; a scalar is one row of one.
    pub(crate) fn rows(&self) -> (usize, usize) {
        let width = self.dims.last().copied().unwrap_or(1);
        (self.len() / width, width)
    }

    /// The dimensions of a tensor of a fixed rank. Errors: INVALID_ARGUMENT, calling the tensor `what`.
    pub(crate) fn shape<const RANK: usize>(
        &self,
        what: &str,
        names: [&str; RANK],
    ) -> Result<[usize; RANK]> {
        <[usize; RANK]>::try_from(self.dims.as_slice()).map_err(|_| {
            Error::InvalidArgument(format!(
                "{what} must be [{}], got the shape {}.",
                names.join(", "),
                format_dims(&self.dims)
            ))
        })
    }
}

impl Drop for GpuTensor {
    fn drop(&mut self) {
        self.pool.borrow_mut().give_back(self.buffer.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::stream;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_waste_a_quarter_at_most(bytes in 1u64..1 << 40) {
            let class = size_class(bytes);
            prop_assert!(class >= bytes && class.is_multiple_of(4));
            prop_assert!(class <= MIN_CLASS.max(bytes + bytes / 4));
            prop_assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn a_dropped_buffer_serves_the_next_tensor() {
        let Some(mut stream) = stream() else { return };
        let first = stream.upload(&[1.0; 1000], &[10, 100]).unwrap();
        let (memory, buffer) = (stream.memory(), first.buffer().clone());
        assert_eq!(memory.live, memory.reserved);
        drop(first);
        assert_eq!(stream.memory().live, 0);
        let second = stream.upload(&[2.0; 990], &[990]).unwrap();
        assert_eq!(second.buffer(), &buffer);
        assert_eq!(stream.memory(), memory);
        drop(second);
        stream.trim();
        assert_eq!(stream.memory().reserved, 0);
    }

    #[test]
    fn shapes_that_no_device_holds_are_errors() {
        let Some(mut stream) = stream() else { return };
        let mut code = |dims: &[usize]| stream.uninit(dims).err().map(|error| error.code());
        assert_eq!(code(&[3, 0]), Some("INVALID_ARGUMENT"));
        assert_eq!(code(&[usize::MAX, 2]), Some("INVALID_ARGUMENT"));
        assert_eq!(code(&[(128 << 20) / 4]), None);
        assert_eq!(code(&[(128 << 20) / 4 + 1]), Some("UNSUPPORTED"));
    }
}
