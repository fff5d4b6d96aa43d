//! Device memory: tensors, and the pool that their buffers are taken from and returned to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use vit_msn_tensor::{Error, Result, check_len, format_dims, numel};

use crate::context::Context;

/// The smallest buffer: the alignment of uniform offsets, and small enough to be negligible.
const MIN_CLASS: u64 = 256;

/// Device memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Held by live tensors, in size classes.
    pub live: u64,
    /// Held by all buffers of the pool, used or free.
    pub reserved: u64,
}

/// Buffers by size class. A freed buffer serves the next tensor of its class: commands run in the order in which they
/// were recorded, so earlier uses are finished by then.
#[derive(Default)]
pub(crate) struct BufferPool {
    /// Free buffers by number, each with the batch in which it was freed.
    free: BTreeMap<u64, BTreeMap<u64, (wgpu::Buffer, u64)>>,
    /// The number of the next buffer.
    next: u64,
    /// The batch being recorded, and whether it has any commands.
    batch: u64,
    recording: bool,
    live: u64,
    reserved: u64,
    /// Nothing runs on these buffers, so each has the minimum size.
    pretends: bool,
    /// How often the device has run out of memory. A buffer that it refused looks like any other, and isn't reused.
    shortages: u64,
}

/// What fills a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilledBy {
    /// An op, recorded after those that used the buffer before.
    Op,
    /// A write, which runs before everything that is recorded but not submitted.
    Write,
}

impl BufferPool {
    /// A pool of placeholder buffers on which no op runs.
    pub fn pretending() -> Self {
        let mut pool = Self::default();
        pool.pretends = true;
        pool
    }

    pub fn memory(&self) -> Memory {
        Memory {
            live: self.live,
            reserved: self.reserved,
        }
    }

    /// Returns the free buffers to the device.
    pub fn trim(&mut self) {
        self.free.clear();
        self.reserved = self.live;
    }

    /// Notes that an op was recorded.
    pub fn recorded(&mut self) {
        self.recording = true;
    }

    /// Notes that everything recorded was submitted.
    pub fn next_batch(&mut self) {
        self.batch += 1;
        self.recording = false;
    }

    fn take(
        &mut self,
        context: &Context,
        class: u64,
        by: FilledBy,
        what: impl Fn() -> String,
    ) -> Result<(wgpu::Buffer, u64)> {
        let class = if self.pretends { MIN_CLASS } else { class };
        if self.shortages != context.shortages() {
            self.shortages = context.shortages();
            self.trim();
        }
        let (batch, idle) = (self.batch, !self.recording || by == FilledBy::Op);
        let usable = |freed: u64| idle || freed < batch;
        let free = self.free.entry(class).or_default();
        // The lowest number: so a second forward pass takes the same buffers as the first one, and finds its bind groups.
        let first = free.iter().find(|&(_, &(_, freed))| usable(freed));
        let first = first.map(|(&number, _)| number);
        let taken = match first.and_then(|number| Some((free.remove(&number)?.0, number))) {
            Some(taken) => taken,
            None => {
                let buffer = new_buffer(context, class, &what())?;
                self.reserved += class;
                self.next += 1;
                (buffer, self.next)
            }
        };
        self.live += class;
        Ok(taken)
    }

    fn give_back(&mut self, buffer: wgpu::Buffer, number: u64, shortages: u64) {
        let class = buffer.size();
        self.live -= class;
        if shortages != self.shortages {
            // Not destroyed: a recorded op may still use it.
            self.reserved -= class;
            return;
        }
        let batch = self.batch;
        let free = self.free.entry(class).or_default();
        free.insert(number, (buffer, batch));
    }
}

impl Drop for BufferPool {
    /// In browsers, a buffer that is only dropped holds its memory until it is garbage-collected.
    fn drop(&mut self) {
        for (buffer, _) in self.free.values().flat_map(BTreeMap::values) {
            buffer.destroy();
        }
    }
}

fn new_buffer(context: &Context, size: u64, what: &str) -> Result<wgpu::Buffer> {
    let what = format!(
        "the {size} bytes of {}{}",
        lower_first(what),
        context.for_op()
    );
    context.checked(&what, || {
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

/// The size of the buffer to allocate for a requested number of bytes.
pub(crate) type Sizing = fn(u64) -> u64;

/// For weights, which are long-lived: no larger than needed.
pub(crate) fn exact_size(bytes: u64) -> u64 {
    bytes.next_multiple_of(MIN_CLASS)
}

/// For short-lived buffers. Four size classes per octave: at most a quarter larger than requested.
pub(crate) fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(1).ilog2()).saturating_sub(2);
    bytes.next_multiple_of(1 << step).max(MIN_CLASS)
}

/// The pool, shared by everything that allocates buffers.
pub(crate) type SharedPool = Rc<RefCell<BufferPool>>;

/// A buffer of the pool. Dropping it returns it to the pool.
pub(crate) struct DeviceBuffer {
    buffer: wgpu::Buffer,
    /// Its number in the pool.
    number: u64,
    /// The pool's `shortages` when the buffer was taken.
    shortages: u64,
    /// The requested size; the buffer has the size of its class.
    bytes: u64,
    pool: SharedPool,
}

/// A buffer range as bound to a kernel.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
    pub bytes: u64,
    /// Whether the buffer holds the whole tensor: see [`GpuTensor::binding`].
    pub whole: bool,
}

impl DeviceBuffer {
    /// A buffer of `bytes` bytes, a positive multiple of 4, with undefined contents.
    ///
    /// # Errors
    /// UNSUPPORTED if `what` exceeds the maximum size of a binding, OUT_OF_MEMORY.
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
                "{}{} takes {bytes} bytes, but this GPU device can bind at most {}: use a smaller batch or image.",
                what(),
                context.for_op(),
                limits.max_storage_buffer_binding_size
            )));
        }
        let class = sizing(bytes).min(limits.max_buffer_size);
        let (buffer, number) = pool.borrow_mut().take(context, class, by, what)?;
        Ok(Self {
            buffer,
            number,
            shortages: pool.borrow().shortages,
            bytes,
            pool: Rc::clone(pool),
        })
    }

    pub fn binding(&self) -> Binding {
        Binding {
            buffer: self.buffer.clone(),
            offset: 0,
            bytes: self.bytes,
            whole: true,
        }
    }

    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The whole buffer, for a readback.
    pub fn piece(&self) -> (&wgpu::Buffer, u64, u64) {
        (&self.buffer, 0, self.bytes)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let mut pool = self.pool.borrow_mut();
        pool.give_back(self.buffer.clone(), self.number, self.shortages);
    }
}

/// A float32 tensor on the device, row-major and contiguous. Dropping it returns its memory to the pool.
pub struct GpuTensor {
    dims: Vec<usize>,
    /// Bytes per element: 4, except for [`GpuHalves`].
    element: usize,
    /// One buffer, or several in sequence if one binding can't hold the tensor: each holds whole rows, or the
    /// probabilities of whole heads.
    parts: Vec<DeviceBuffer>,
}

/// A tensor that only linear layers that compute in float16 read. It stores x as they convert it before multiplying,
/// in half the bytes, so that results are bit-identical. `stored_f16.wgsl` writes it and `x_halves.wgsl` reads it.
pub struct GpuHalves(GpuTensor);

impl GpuHalves {
    /// An uninitialised tensor for an op that processes rows, as [`GpuTensor::uninit_rows`].
    pub(crate) fn uninit_rows(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
    ) -> Result<Self> {
        GpuTensor::uninit_rows_of(context, pool, dims, 2).map(Self)
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    /// The size of its elements in bytes.
    pub fn byte_size(&self) -> usize {
        self.0.byte_size()
    }

    /// For ops that know the format of its elements.
    pub(crate) fn raw(&self) -> &GpuTensor {
        &self.0
    }
}

/// The input of a linear layer.
#[derive(Clone, Copy)]
pub enum Activations<'a> {
    /// A tensor that every op reads.
    Wide(&'a GpuTensor),
    /// A tensor that only linear layers read.
    Halves(&'a GpuHalves),
}

impl<'a> Activations<'a> {
    /// The shape.
    pub fn dims(self) -> &'a [usize] {
        self.raw().dims()
    }

    pub(crate) fn raw(self) -> &'a GpuTensor {
        match self {
            Self::Wide(tensor) => tensor,
            Self::Halves(halves) => halves.raw(),
        }
    }

    pub(crate) fn are_halves(self) -> bool {
        matches!(self, Self::Halves(_))
    }
}

/// A result that a linear layer reads.
pub enum Stored {
    /// In the format of every op.
    Wide(GpuTensor),
    /// In the format in which that layer multiplies it.
    Halves(GpuHalves),
}

impl<'a> From<&'a Stored> for Activations<'a> {
    fn from(stored: &'a Stored) -> Self {
        match stored {
            Stored::Wide(tensor) => Self::Wide(tensor),
            Stored::Halves(halves) => Self::Halves(halves),
        }
    }
}

impl Stored {
    pub(crate) fn raw(&self) -> &GpuTensor {
        match self {
            Self::Wide(tensor) => tensor,
            Self::Halves(halves) => halves.raw(),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_halves(&self) -> bool {
        matches!(self, Self::Halves(_))
    }
}

impl GpuTensor {
    /// A tensor with undefined contents.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a shape without elements, UNSUPPORTED if it exceeds the maximum size of a binding,
    /// OUT_OF_MEMORY.
    pub(crate) fn uninit(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        by: FilledBy,
    ) -> Result<Self> {
        Self::uninit_of(context, pool, dims, 4, by)
    }

    fn uninit_of(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        element: usize,
        by: FilledBy,
    ) -> Result<Self> {
        let bytes = byte_size(dims, element)?;
        let what = || format!("A tensor {}", format_dims(dims));
        Ok(Self {
            dims: dims.to_vec(),
            element,
            parts: vec![DeviceBuffer::new(
                context, pool, bytes, size_class, by, what,
            )?],
        })
    }

    /// A tensor of `units` blocks, split into the parts that bindings of up to `most` blocks require.
    ///
    /// # Errors
    /// As [`GpuTensor::uninit`].
    pub(crate) fn uninit_parts(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        units: usize,
        most: usize,
    ) -> Result<Self> {
        Self::uninit_parts_of(context, pool, dims, 4, (units, most))
    }

    fn uninit_parts_of(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        element: usize,
        (units, most): (usize, usize),
    ) -> Result<Self> {
        let unit_bytes = byte_size(dims, element)? / units as u64;
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
            element,
            parts,
        })
    }

    /// A tensor in parts of whole rows if one binding can't hold it.
    ///
    /// # Errors
    /// As [`GpuTensor::uninit`].
    pub(crate) fn uninit_rows(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
    ) -> Result<Self> {
        Self::uninit_rows_of(context, pool, dims, 4)
    }

    fn uninit_rows_of(
        context: &Context,
        pool: &SharedPool,
        dims: &[usize],
        element: usize,
    ) -> Result<Self> {
        let width = dims.last().copied().unwrap_or(1);
        let rows = numel(dims)? / width.max(1);
        let row_bytes = element as u64 * width.max(1) as u64;
        let most = context.limits().max_storage_buffer_binding_size / row_bytes;
        // A multiple of this many rows is a valid binding offset, whatever the width.
        let aligned = (most - most % ALIGNED_ROWS) as usize;
        if rows as u64 <= most || aligned == 0 {
            return Self::uninit_of(context, pool, dims, element, FilledBy::Op);
        }
        Self::uninit_parts_of(context, pool, dims, element, (rows, aligned))
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The size of its elements in bytes.
    pub fn byte_size(&self) -> usize {
        self.len() * self.element
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The buffer of a tensor with a single one.
    #[cfg(test)]
    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        self.parts[0].buffer()
    }

    /// The tensor as bound to kernels. A tensor in several parts has no such binding, and ops refuse it.
    pub(crate) fn binding(&self) -> Binding {
        Binding {
            whole: self.parts.len() == 1,
            ..self.parts[0].binding()
        }
    }

    /// Rows in each part except the last, for a tensor in parts of whole rows.
    fn rows_a_part(&self) -> usize {
        let (rows, width) = self.rows();
        match self.parts.len() {
            1 => rows,
            _ => self.parts[0].bytes as usize / (self.element * width),
        }
    }

    /// The binding of these rows, which are within one part: see [`row_windows`].
    pub(crate) fn window(&self, rows: &Range<usize>) -> Binding {
        let (each, (_, width)) = (self.rows_a_part(), self.rows());
        Binding {
            offset: (rows.start % each * width * self.element) as u64,
            bytes: (rows.len() * width * self.element) as u64,
            ..self.parts[rows.start / each].binding()
        }
    }

    pub(crate) fn parts(&self) -> &[DeviceBuffer] {
        &self.parts
    }

    /// # Errors
    /// INVALID_ARGUMENT, referring to the tensor as `what`, unless it has the number of elements of `dims`.
    pub(crate) fn expect(&self, what: &str, dims: &[usize]) -> Result<()> {
        check_len(what, self.len(), dims)
    }

    /// The number of rows and the width, which is the last dimension. A scalar is one row of one value.
    pub(crate) fn rows(&self) -> (usize, usize) {
        let width = self.dims.last().copied().unwrap_or(1);
        (self.len() / width, width)
    }

    /// The dimensions of a tensor of a fixed rank.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, referring to the tensor as `what`.
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

/// The smallest number of rows that is a multiple of 256 bytes for every width, and so a valid binding offset.
const ALIGNED_ROWS: u64 = 64;

/// Splits the rows of tensors with the same number of rows into ranges that lie within one part of every tensor.
pub(crate) fn row_windows(tensors: &[&GpuTensor]) -> Vec<Range<usize>> {
    let rows = tensors[0].rows().0;
    let mut windows = Vec::new();
    let mut start = 0;
    while start < rows {
        let end_of_part =
            |tensor: &&GpuTensor| (start / tensor.rows_a_part() + 1) * tensor.rows_a_part();
        let end = tensors.iter().map(end_of_part).fold(rows, usize::min);
        windows.push(start..end);
        start = end;
    }
    windows
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

/// # Errors
/// INVALID_ARGUMENT for a shape without elements.
fn byte_size(dims: &[usize], element: usize) -> Result<u64> {
    match (numel(dims)? as u64).saturating_mul(element as u64) {
        0 => Err(Error::InvalidArgument(format!(
            "A tensor on the GPU needs at least one element, but the shape {} has none.",
            format_dims(dims)
        ))),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{context, context_binding, stream};
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
    fn rows_are_cut_where_any_tensor_is() {
        let Some(context) = context_binding(64 * 4 * 32) else {
            return;
        };
        let pool = SharedPool::default();
        let tensor = |dims: &[usize]| GpuTensor::uninit_rows(&context, &pool, dims).unwrap();
        let (narrow, wide) = (tensor(&[300, 16]), tensor(&[2, 150, 32]));
        assert_eq!((narrow.parts().len(), wide.parts().len()), (3, 5));
        let windows = row_windows(&[&narrow, &wide]);
        assert_eq!(windows, [0..64, 64..128, 128..192, 192..256, 256..300]);
        let second = narrow.window(&windows[1]);
        assert_eq!((second.offset, second.bytes), (64 * 16 * 4, 64 * 16 * 4));
        assert!(second.buffer == *narrow.parts()[0].buffer());
        // If all rows fit, they form one part, whatever their number.
        assert_eq!(tensor(&[65, 31]).parts().len(), 1);
        let last = wide.window(&windows[4]);
        assert_eq!((last.offset, last.bytes), (0, 44 * 32 * 4));
        assert!(!wide.binding().whole && last.whole);
    }

    #[test]
    fn what_is_too_large_is_named_with_its_op() {
        let Some(context) = context() else { return };
        context.begin_op("linear");
        let pool = SharedPool::default();
        let dims = [(128 << 20) / 4 + 1];
        let error = GpuTensor::uninit(&context, &pool, &dims, FilledBy::Op);
        let message = error.err().unwrap().to_string();
        assert!(
            message.starts_with("A tensor [33554433] for linear takes"),
            "{message}"
        );
    }

    #[test]
    fn after_a_shortage_of_memory_no_buffer_from_before_it_is_used() {
        let Some(mut stream) = stream() else { return };
        let (alive, freed) = (
            stream.upload(&[1.0], &[1]).unwrap(),
            stream.upload(&[1.0], &[1]).unwrap(),
        );
        let before = [alive.buffer().clone(), freed.buffer().clone()];
        drop(freed);
        stream.context().run_short();
        let after = stream.upload(&[1.0], &[1]).unwrap();
        drop(alive);
        let next = stream.upload(&[1.0], &[1]).unwrap();
        assert!(!before.contains(after.buffer()) && !before.contains(next.buffer()));
        assert_eq!(stream.memory().live, stream.memory().reserved);
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
