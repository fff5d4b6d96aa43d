//! Device memory: tensors, and the pool that their buffers come from and go back to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use vit_msn_tensor::{Error, Result, check_len, format_dims, numel};

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
    /// Each with the batch in which it was freed.
    free: BTreeMap<u64, Vec<(wgpu::Buffer, u64)>>,
    /// The batch that is being recorded, and whether anything is in it.
    batch: u64,
    recording: bool,
    live: u64,
    reserved: u64,
}

/// Who fills a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilledBy {
    /// An op that is recorded after those that used it.
    Op,
    /// A write, which runs before all that is recorded and not submitted.
    Write,
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

    /// An op was recorded.
    pub fn recorded(&mut self) {
        self.recording = true;
    }

    /// Everything recorded was submitted.
    pub fn next_batch(&mut self) {
        self.batch += 1;
        self.recording = false;
    }

    fn take(&mut self, context: &Context, class: u64, by: FilledBy) -> Result<wgpu::Buffer> {
        let (batch, idle) = (self.batch, !self.recording || by == FilledBy::Op);
        let usable = |freed: u64| idle || freed < batch;
        let free = self.free.entry(class).or_default();
        let buffer = match free.iter().rposition(|&(_, freed)| usable(freed)) {
            Some(index) => free.remove(index).0,
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
        let batch = self.batch;
        self.free.entry(class).or_default().push((buffer, batch));
    }
}

impl Drop for BufferPool {
    /// In browsers a buffer that is only dropped keeps its memory until the garbage collector comes by.
    fn drop(&mut self) {
        for (buffer, _) in self.free.values().flatten() {
            buffer.destroy();
        }
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

/// How many bytes a buffer gets for those that were asked for.
pub(crate) type Sizing = fn(u64) -> u64;

/// For weights, which stay: no more than needed.
pub(crate) fn exact_size(bytes: u64) -> u64 {
    bytes.next_multiple_of(MIN_CLASS)
}

/// For what comes and goes. Four classes an octave: at most a quarter more than what was asked for.
pub(crate) fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(1).ilog2()).saturating_sub(2);
    bytes.next_multiple_of(1 << step).max(MIN_CLASS)
}

/// The pool, as all that takes buffers from it shares it.
pub(crate) type SharedPool = Rc<RefCell<BufferPool>>;

/// A buffer of the pool; dropping it returns it.
pub(crate) struct DeviceBuffer {
    buffer: wgpu::Buffer,
    /// What was asked for; the buffer is as large as its class.
    bytes: u64,
    pool: SharedPool,
}

/// What a kernel sees of a buffer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    pub buffer: wgpu::Buffer,
    pub bytes: u64,
    /// Whether the buffer is all of what it stands for: see [`GpuTensor::part`].
    pub whole: bool,
}

impl DeviceBuffer {
    /// `bytes` bytes, a multiple of 4 above 0, of whatever the buffer held last.
    /// Errors: UNSUPPORTED when `what` is larger than one binding may be, OUT_OF_MEMORY.
    pub fn new(
        context: &Context,
        pool: &SharedPool,
        bytes: u64,
        sizing: Sizing,
        by: FilledBy,
        what: impl Fn() -> String,
    ) -> Result<Self> {
        let limits = context.limits();
        if bytes > limits.max_storage_buffer_binding_size {
            return Err(Error::Unsupported(format!(
                "{} takes {bytes} bytes, and this GPU device binds {} at most: use a smaller batch or picture.",
                what(),
                limits.max_storage_buffer_binding_size
            )));
        }
        let class = sizing(bytes).min(limits.max_buffer_size);
        Ok(Self {
            buffer: pool.borrow_mut().take(context, class, by)?,
            bytes,
            pool: Rc::clone(pool),
        })
    }

    pub fn binding(&self) -> Binding {
        Binding {
            buffer: self.buffer.clone(),
            bytes: self.bytes,
            whole: true,
        }
    }

    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// All of it, for a readback.
    pub fn piece(&self) -> (&wgpu::Buffer, u64, u64) {
        (&self.buffer, 0, self.bytes)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.pool.borrow_mut().give_back(self.buffer.clone());
    }
}

/// A float32 tensor on the device, row-major and contiguous. Dropping it returns its memory to the pool.
pub struct GpuTensor {
    dims: Vec<usize>,
    /// One buffer, or several one after the other where one binding can't hold the probabilities of attention.
    parts: Vec<DeviceBuffer>,
}

impl GpuTensor {
    /// A tensor of whatever its buffer held last.
    /// Errors: INVALID_ARGUMENT for a shape without elements, UNSUPPORTED when it is larger than one binding may be,
    /// OUT_OF_MEMORY.
    pub(crate) fn uninit(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        by: FilledBy,
    ) -> Result<Self> {
        let bytes = byte_size(dims)?;
        let what = || format!("A tensor {}", format_dims(dims));
        Ok(Self {
            dims: dims.to_vec(),
            parts: vec![DeviceBuffer::new(
                context, pool, bytes, size_class, by, what,
            )?],
        })
    }

    /// A tensor of `units` blocks in as many parts as bindings of `most` blocks are needed.
    /// Errors: as [`GpuTensor::uninit`].
    pub(crate) fn uninit_parts(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        units: usize,
        most: usize,
    ) -> Result<Self> {
        let unit_bytes = byte_size(dims)? / units as u64;
        let what = || format!("A part of a tensor {}", format_dims(dims));
        let parts = (0..units)
            .step_by(most)
            .map(|first| {
                let bytes = unit_bytes * most.min(units - first) as u64;
                DeviceBuffer::new(context, pool, bytes, size_class, FilledBy::Op, what)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            dims: dims.to_vec(),
            parts,
        })
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes of its elements.
    pub fn byte_size(&self) -> usize {
        self.len() * 4
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The buffer of a tensor that has one.
    #[cfg(test)]
    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        self.parts[0].buffer()
    }

    /// What kernels see of the tensor; one in several parts has no such binding, and ops refuse it.
    pub(crate) fn binding(&self) -> Binding {
        Binding {
            whole: self.parts.len() == 1,
            ..self.parts[0].binding()
        }
    }

    pub(crate) fn parts(&self) -> &[DeviceBuffer] {
        &self.parts
    }

    /// Errors: INVALID_ARGUMENT, calling the tensor `what`, unless it has as many elements as `dims`.
    pub(crate) fn expect(&self, what: &str, dims: &[usize]) -> Result<()> {
        check_len(what, self.len(), dims)
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

/// Errors: INVALID_ARGUMENT for a shape without elements.
fn byte_size(dims: &[usize]) -> Result<u64> {
    match (numel(dims)? as u64).saturating_mul(4) {
        0 => Err(Error::InvalidArgument(format!(
            "A tensor on the GPU needs at least one element, and {} has none.",
            format_dims(dims)
        ))),
        bytes => Ok(bytes),
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
