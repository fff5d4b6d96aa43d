//! A stream of ops: recorded one by one, submitted together, and read back only on request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::mem;
use std::rc::Rc;

use bytemuck::NoUninit;
use futures_channel::oneshot;
use vit_msn_tensor::{Dtype, Error, Result, check_len, try_vec};

use crate::buffers::{
    Binding, BufferPool, DeviceBuffer, FilledBy, GpuHalves, GpuTensor, Memory, SharedPool, Sizing,
    Stored, size_class,
};
use crate::context::Context;
use crate::pipelines::{Arity, Constants, Kernel, Module, PipelineCache};
use crate::profile::{Cost, OpProfile, ProfiledBatch, Timer, min_bytes, set_times};
use crate::tiles::ChosenTiles;

/// Bytes of one dispatch's uniforms, and the alignment of their offsets: the default of
/// min_uniform_buffer_offset_alignment, which is its maximum.
const UNIFORM_SLOT: usize = 256;

/// Maximum number of dispatches per submission, more than a forward pass of ViT-MSN large needs (24 layers of 7, and 6).
const MAX_DISPATCHES: usize = 256;

/// Maximum number of cached bind groups, enough for a few forward passes of different sizes.
const MAX_BIND_GROUPS: usize = 4096;

/// Flush threshold for queued uploads, in bytes: until they are submitted, wgpu holds a second copy.
const MAX_UNSUBMITTED: u64 = 32 << 20;

/// Maximum bytes of uploads that wait for the next submission, to be checked with it: more than the pixels of an
/// image, and little memory.
const MAX_DEFERRED: usize = 1 << 20;

/// One dispatch of a kernel.
pub(crate) struct Op<'a, Uniforms> {
    pub kernel: Kernel,
    /// The names and values of the kernel's constants.
    pub constants: (Constants, &'a [u32]),
    /// Binding 0.
    pub uniforms: Uniforms,
    /// The bindings after binding 0.
    pub reads: &'a [Binding],
    /// The bindings after `reads`, none of which may also be in `reads`.
    pub writes: &'a [Binding],
    pub workgroups: [usize; 3],
    pub cost: Cost,
}

struct Dispatch {
    name: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    cost: Cost,
    min_bytes: u64,
}

impl Dispatch {
    fn encode(&self, slot: usize, pass: &mut wgpu::ComputePass) {
        let [x, y, z] = self.workgroups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[(slot * UNIFORM_SLOT) as u32]);
        pass.dispatch_workgroups(x, y, z);
    }

    fn profile(&self) -> OpProfile {
        OpProfile {
            name: self.name,
            nanoseconds: None,
            flop: self.cost.flop,
            bytes: self.cost.bytes,
            min_bytes: self.min_bytes,
            workgroups: self
                .workgroups
                .iter()
                .map(|&count| u64::from(count))
                .product(),
        }
    }
}

/// A copy of buffers to the host.
struct Readback {
    pieces: Vec<(wgpu::Buffer, u64, u64)>,
    total: u64,
    /// Receives the buffer once its contents can be read, or the failure.
    mapped: oneshot::Sender<std::result::Result<wgpu::Buffer, wgpu::BufferAsyncError>>,
}

impl Readback {
    /// Copies the pieces to a new buffer, which can be mapped.
    fn encode(&self, device: &wgpu::Device, encoder: &mut wgpu::CommandEncoder) -> wgpu::Buffer {
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            // An empty buffer can't be mapped.
            size: self.total.max(4),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut end = 0;
        for (buffer, offset, size) in &self.pieces {
            encoder.copy_buffer_to_buffer(buffer, *offset, &staging, end, *size);
            end += size;
        }
        staging
    }

    fn map(self, staging: wgpu::Buffer) {
        let buffer = staging.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone if the caller dropped the future.
            let _ = self.mapped.send(result.map(|()| buffer));
        });
    }
}

/// The commands of a batch, in order.
enum Command {
    Dispatch(Dispatch),
    Read(Readback),
}

impl Command {
    fn dispatch(&self) -> Option<&Dispatch> {
        match self {
            Command::Dispatch(dispatch) => Some(dispatch),
            Command::Read(_) => None,
        }
    }

    fn read(self) -> Option<Readback> {
        match self {
            Command::Dispatch(_) => None,
            Command::Read(read) => Some(read),
        }
    }
}

/// An upload that waits for the next submission.
struct Deferred {
    buffer: wgpu::Buffer,
    offset: u64,
    bytes: Vec<u8>,
}

impl Deferred {
    fn write(&self, queue: &wgpu::Queue) {
        queue.write_buffer(&self.buffer, self.offset, &self.bytes);
    }
}

/// The work of dispatches, as in [`Cost::work`].
struct Work {
    recorded: u64,
    submitted: u64,
    /// Maximum of one submission.
    budget: u64,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            recorded: 0,
            submitted: 0,
            budget: u64::MAX,
        }
    }
}

/// Records ops on one device and submits them together. Dropping it doesn't submit.
pub struct Stream {
    context: Rc<Context>,
    pool: SharedPool,
    pipelines: PipelineCache,
    bind_groups: HashMap<(Arity, Vec<Binding>), wgpu::BindGroup>,
    /// The uniforms of the batch being recorded, one slot per dispatch.
    uniforms: Vec<u8>,
    uniform_buffer: wgpu::Buffer,
    recorded: Vec<Command>,
    deferred: Vec<Deferred>,
    dispatches: u64,
    work: Work,
    /// Whether ops are recorded only to compile their pipelines: see [`Stream::planning`].
    plans: bool,
    /// Bytes written since the last submission.
    unsubmitted: u64,
    /// The batches since [`Stream::start_profile`].
    profile: Option<Vec<ProfiledBatch>>,
    pub(crate) tiles: ChosenTiles,
}

impl Stream {
    /// A stream on the context's device.
    ///
    /// # Errors
    /// OUT_OF_MEMORY, ENGINE_DEAD if the device is lost.
    pub fn new(context: Rc<Context>) -> Result<Self> {
        let uniform_buffer = context.checked("the ops' uniforms", || {
            context.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("uniforms"),
                size: (MAX_DISPATCHES * UNIFORM_SLOT) as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        Ok(Self {
            context,
            pool: Rc::default(),
            pipelines: PipelineCache::default(),
            bind_groups: HashMap::new(),
            uniforms: Vec::new(),
            uniform_buffer,
            recorded: Vec::new(),
            deferred: Vec::new(),
            dispatches: 0,
            work: Work::default(),
            plans: false,
            unsubmitted: 0,
            profile: None,
            tiles: ChosenTiles::default(),
        })
    }

    /// A stream on which nothing runs: ops only compile the pipelines that they will need, tensors have no contents,
    /// and layers count as complete.
    ///
    /// # Errors
    /// As [`Stream::new`].
    pub fn planning(context: Rc<Context>) -> Result<Self> {
        let mut stream = Self::new(context)?;
        stream.plans = true;
        stream.pool = Rc::new(RefCell::new(BufferPool::pretending()));
        Ok(stream)
    }

    /// The WGSL of every kernel compiled so far.
    pub fn modules(&self) -> Vec<Module> {
        self.pipelines.modules()
    }

    /// Whether nothing runs here.
    pub(crate) fn plans(&self) -> bool {
        self.plans
    }

    /// The labels of all pipelines.
    #[cfg(test)]
    pub(crate) fn pipeline_labels(&self) -> Vec<String> {
        self.pipelines.labels()
    }

    /// The device.
    pub fn context(&self) -> &Rc<Context> {
        &self.context
    }

    /// Device memory used by this stream's tensors and weights.
    pub fn memory(&self) -> Memory {
        self.pool.borrow().memory()
    }

    /// Returns the memory of dropped tensors to the device.
    pub fn trim(&mut self) {
        self.bind_groups.clear();
        self.pool.borrow_mut().trim();
    }

    /// Limits the work of one submission, so that the device isn't blocked for long: an operating system resets a GPU
    /// that doesn't answer for seconds. A dispatch that exceeds the limit is a submission on its own. Without this call,
    /// there is no limit.
    pub fn limit_submissions(&mut self, flop: u64) {
        self.work.budget = flop;
    }

    /// The work submitted since the stream was created, in floating-point operations.
    pub fn submitted_work(&self) -> u64 {
        self.work.submitted
    }

    /// Number of dispatches since the stream was created, including recorded ones.
    pub fn dispatches(&self) -> u64 {
        self.dispatches
    }

    /// Copies `data` to the device as a tensor of shape `dims`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
    pub fn upload(&mut self, data: &[f32], dims: &[usize]) -> Result<GpuTensor> {
        check_len("The data", data.len(), dims)?;
        let tensor = GpuTensor::uninit(&self.context, &self.pool, dims, FilledBy::Write)?;
        self.write(tensor.parts()[0].buffer(), 0, bytemuck::cast_slice(data))?;
        Ok(tensor)
    }

    /// Copies a checkpoint's raw little-endian values of type `from` to the device, rounded to `dtype` and widened to
    /// float32.
    ///
    /// # Errors
    /// As [`Stream::upload`], and INVALID_CHECKPOINT for a value that isn't finite or exceeds the range of `dtype`.
    pub fn upload_parameter(
        &mut self,
        bytes: &[u8],
        from: Dtype,
        dtype: Dtype,
        dims: &[usize],
    ) -> Result<GpuTensor> {
        let mut values = try_vec(bytes.len() / from.size())?;
        check_len("The data", values.len(), dims)?;
        from.decode_rounded(bytes, dtype, &mut values, |index| {
            format!("Element {index}")
        })?;
        self.upload(&values, dims)
    }

    /// Copies values of any plain type to the device, for an op's tables. `what` names them in errors.
    pub(crate) fn upload_table<T: NoUninit>(
        &mut self,
        data: &[T],
        what: &str,
    ) -> Result<DeviceBuffer> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let what = || what.to_string();
        let buffer = self.buffer(bytes.len() as u64, size_class, what)?;
        self.write(buffer.buffer(), 0, bytes)?;
        Ok(buffer)
    }

    /// Writes a multiple of 4 bytes at an offset that is a multiple of 4, into a buffer that no recorded op uses.
    pub(crate) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.plans {
            return Ok(());
        }
        let waiting: usize = self.deferred.iter().map(|write| write.bytes.len()).sum();
        if waiting + bytes.len() <= MAX_DEFERRED {
            let mut copy = try_vec(bytes.len())?;
            copy.copy_from_slice(bytes);
            self.deferred.push(Deferred {
                buffer: buffer.clone(),
                offset,
                bytes: copy,
            });
            return Ok(());
        }
        let earlier = self.take_deferred();
        let queue = self.context.queue();
        self.context.checked("an upload", || {
            earlier.iter().for_each(|write| write.write(queue));
            queue.write_buffer(buffer, offset, bytes);
        })?;
        self.unsubmitted += bytes.len() as u64;
        if self.unsubmitted > MAX_UNSUBMITTED {
            self.unsubmitted = 0;
            self.context.checked("an upload", || {
                self.context.queue().submit([]);
            })?;
        }
        Ok(())
    }

    /// The uploads that wait; the caller writes them.
    fn take_deferred(&mut self) -> Vec<Deferred> {
        let deferred = mem::take(&mut self.deferred);
        let bytes = deferred.iter().map(|write| write.bytes.len() as u64);
        self.unsubmitted += bytes.sum::<u64>();
        deferred
    }

    /// Copies a texture immediately into a buffer that no recorded op uses.
    pub(crate) fn copy_texture(
        &mut self,
        texture: &wgpu::Texture,
        buffer: &wgpu::Buffer,
        pitch: u32,
    ) -> Result<()> {
        let earlier = self.take_deferred();
        let context = &self.context;
        context.checked("an image", || {
            earlier
                .iter()
                .for_each(|write| write.write(context.queue()));
            let mut encoder = context.device().create_command_encoder(&Default::default());
            let layout = wgpu::TexelCopyBufferLayout {
                offset: 0,
                bytes_per_row: Some(pitch),
                rows_per_image: None,
            };
            encoder.copy_texture_to_buffer(
                texture.as_image_copy(),
                wgpu::TexelCopyBufferInfo { buffer, layout },
                texture.size(),
            );
            context.queue().submit([encoder.finish()]);
        })
    }

    /// An uninitialised tensor for an op to fill.
    pub(crate) fn uninit(&mut self, dims: &[usize]) -> Result<GpuTensor> {
        GpuTensor::uninit(&self.context, &self.pool, dims, FilledBy::Op)
    }

    /// An uninitialised tensor for an op that processes rows: in parts if one binding can't hold it.
    pub(crate) fn uninit_rows(&mut self, dims: &[usize]) -> Result<GpuTensor> {
        GpuTensor::uninit_rows(&self.context, &self.pool, dims)
    }

    /// The same for a result that a linear layer reads, in the format that suits the layer.
    pub(crate) fn uninit_for(&mut self, dims: &[usize], halves: bool) -> Result<Stored> {
        if halves {
            return GpuHalves::uninit_rows(&self.context, &self.pool, dims).map(Stored::Halves);
        }
        self.uninit_rows(dims).map(Stored::Wide)
    }

    /// A tensor of `units` blocks for an op to fill part by part, each of up to `most` blocks.
    pub(crate) fn uninit_parts(
        &mut self,
        dims: &[usize],
        units: usize,
        most: usize,
    ) -> Result<GpuTensor> {
        GpuTensor::uninit_parts(&self.context, &self.pool, dims, units, most)
    }

    /// A buffer for [`Stream::write`] to fill. `what` names it in errors.
    pub(crate) fn buffer(
        &self,
        bytes: u64,
        sizing: Sizing,
        what: impl Fn() -> String,
    ) -> Result<DeviceBuffer> {
        let (context, pool) = (&self.context, &self.pool);
        DeviceBuffer::new(context, pool, bytes, sizing, FilledBy::Write, what)
    }

    /// Adds an op to the batch.
    ///
    /// # Errors
    /// UNSUPPORTED, naming the op, if it has too many workgroups or the device refuses it; ENGINE_DEAD.
    pub(crate) fn record<Uniforms: NoUninit>(&mut self, op: Op<'_, Uniforms>) -> Result<()> {
        const { assert!(size_of::<Uniforms>() <= UNIFORM_SLOT) };
        let workgroups = self.check_workgroups(op.kernel.name, op.workgroups)?;
        let buffers = [op.reads, op.writes].concat();
        if buffers.iter().any(|binding| !binding.whole) {
            return Err(Error::Unsupported(format!(
                "{} can't take a tensor that is larger than this GPU device's bindings: use a smaller batch or image.",
                op.kernel.name
            )));
        }
        let (names, values) = op.constants;
        let arity = Arity {
            reads: op.reads.len(),
            writes: op.writes.len(),
        };
        let pipeline = self
            .pipelines
            .get(&self.context, op.kernel, arity, names, values)?;
        self.dispatches += 1;
        if self.plans {
            return Ok(());
        }
        let min_bytes = min_bytes(&buffers);
        let bind_group = self.bind(op.kernel.name, arity, buffers)?;
        let work = self.work.recorded.saturating_add(op.cost.work());
        let is_over = self.work.recorded > 0 && work > self.work.budget;
        if is_over || self.uniforms.len() == MAX_DISPATCHES * UNIFORM_SLOT {
            self.submit()?;
        }
        self.work.recorded += op.cost.work();
        let end = self.uniforms.len() + UNIFORM_SLOT;
        self.uniforms
            .extend_from_slice(bytemuck::bytes_of(&op.uniforms));
        self.uniforms.resize(end, 0);
        self.recorded.push(Command::Dispatch(Dispatch {
            name: op.kernel.name,
            pipeline,
            bind_group,
            workgroups,
            cost: op.cost,
            min_bytes,
        }));
        self.pool.borrow_mut().recorded();
        Ok(())
    }

    fn check_workgroups(&self, name: &str, workgroups: [usize; 3]) -> Result<[u32; 3]> {
        let most = self.context.limits().max_compute_workgroups_per_dimension;
        if workgroups.iter().any(|&count| count > most as usize) {
            return Err(Error::Unsupported(format!(
                "{name} would need {workgroups:?} workgroups, but this GPU device runs at most {most} per dimension: use a smaller batch or image."
            )));
        }
        Ok(workgroups.map(|count| count as u32))
    }

    /// The bind group of these buffers. It usually exists, because a forward pass takes the same buffers from the pool as
    /// the previous one.
    fn bind(&mut self, name: &str, arity: Arity, buffers: Vec<Binding>) -> Result<wgpu::BindGroup> {
        let key = (arity, buffers);
        if let Some(bind_group) = self.bind_groups.get(&key) {
            return Ok(bind_group.clone());
        }
        let layout = self.pipelines.layout(&self.context, arity);
        let uniforms = (&self.uniform_buffer, 0, UNIFORM_SLOT as u64);
        let storage = key
            .1
            .iter()
            .map(|binding| (&binding.buffer, binding.offset, binding.bytes));
        let entries: Vec<_> = std::iter::once(uniforms)
            .chain(storage)
            .zip(0..)
            .map(|((buffer, offset, size), binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset,
                    size: wgpu::BufferSize::new(size),
                }),
            })
            .collect();
        let bind_group = self.context.checked(name, || {
            self.context
                .device()
                .create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(name),
                    layout,
                    entries: &entries,
                })
        })?;
        if self.bind_groups.len() == MAX_BIND_GROUPS {
            self.bind_groups.clear();
        }
        self.bind_groups.insert(key, bind_group.clone());
        Ok(bind_group)
    }

    /// Submits the recorded ops to the device as one command buffer, without waiting for them. In browsers this is all
    /// that a forward pass with known buffers asks of the device, so one set of error scopes covers it.
    ///
    /// # Errors
    /// The errors of the recorded ops; in browsers the next [`Stream::read`] returns them.
    pub fn submit(&mut self) -> Result<()> {
        if self.recorded.is_empty() {
            return Ok(());
        }
        let batch = mem::take(&mut self.recorded);
        // Without dispatches, only with reads, there is nothing to time.
        let has_ops = batch.iter().any(|command| command.dispatch().is_some());
        let uniforms = mem::take(&mut self.uniforms);
        let deferred = self.take_deferred();
        self.pool.borrow_mut().next_batch();
        self.unsubmitted = 0;
        self.work.submitted += mem::take(&mut self.work.recorded);
        let (device, queue) = (self.context.device(), self.context.queue());
        self.context.checked(&describe(&batch), || {
            deferred.iter().for_each(|write| write.write(queue));
            queue.write_buffer(&self.uniform_buffer, 0, &uniforms);
            let mut encoder = device.create_command_encoder(&Default::default());
            let profile = self.profile.as_mut().filter(|_| has_ops);
            let timer = profile.map(|profile| {
                let dispatches = batch.iter().filter_map(Command::dispatch);
                let ops: Vec<_> = dispatches.map(Dispatch::profile).collect();
                (Timer::new(&self.context, ops.len()), ops, profile)
            });
            let staging = match timer {
                None => encode(&batch, device, &mut encoder),
                Some((timer, ops, profile)) => {
                    let staging = encode_timed(&batch, device, &mut encoder, timer.as_ref());
                    let timestamps = timer.map(|timer| timer.resolve(&mut encoder));
                    profile.push(ProfiledBatch { ops, timestamps });
                    staging
                }
            };
            queue.submit([encoder.finish()]);
            let reads = batch.into_iter().filter_map(Command::read);
            reads
                .zip(staging)
                .for_each(|(read, staging)| read.map(staging));
        })
    }

    /// Starts timing each dispatch, until [`Stream::finish_profile`]. Dispatches don't overlap in the meantime, which
    /// costs a little.
    ///
    /// # Errors
    /// As [`Stream::submit`].
    pub fn start_profile(&mut self) -> Result<()> {
        self.submit()?;
        self.profile = Some(Vec::new());
        Ok(())
    }

    /// Submits the recorded ops and returns the profile of each dispatch since [`Stream::start_profile`], in order.
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub fn finish_profile(
        &mut self,
    ) -> Result<impl Future<Output = Result<Vec<OpProfile>>> + use<>> {
        self.submit()?;
        let batches = self.profile.take().unwrap_or_default();
        let buffers = || batches.iter().filter_map(|batch| batch.timestamps.as_ref());
        let pieces: Vec<_> = buffers().map(|buffer| (buffer, 0, buffer.size())).collect();
        let mut ops = batches
            .iter()
            .flat_map(|batch| batch.ops.clone())
            .collect::<Vec<_>>();
        let period = self.context.queue().get_timestamp_period();
        self.read_pieces(&pieces, move |bytes| {
            set_times(&mut ops, bytes, period)?;
            Ok(ops)
        })
    }

    /// Submits the recorded ops and copies the tensor out, in one command buffer. The copy is in flight when this
    /// returns: the tensor may be dropped and further ops recorded before the result is awaited. Natively, awaiting
    /// blocks.
    ///
    /// # Errors
    /// Those of the preceding ops, OUT_OF_MEMORY, ENGINE_DEAD if the device is lost.
    pub fn read(
        &mut self,
        tensor: &GpuTensor,
    ) -> Result<impl Future<Output = Result<Vec<f32>>> + use<>> {
        let pending = self.record_read(tensor)?;
        self.submit()?;
        Ok(pending)
    }

    /// [`Stream::read`] without submitting. The caller must submit before first polling the result.
    pub fn record_read(
        &mut self,
        tensor: &GpuTensor,
    ) -> Result<impl Future<Output = Result<Vec<f32>>> + use<>> {
        let pieces: Vec<_> = tensor.parts().iter().map(DeviceBuffer::piece).collect();
        self.record_pieces(&pieces, |bytes| {
            let mut values = try_vec(bytes.len() / 4)?;
            Dtype::F32.decode(bytes, &mut values)?;
            Ok(values)
        })
    }

    /// [`Stream::read`] of a sequence of buffer pieces, each with an offset and a size that are multiples of 4.
    /// `convert` turns their bytes into the result.
    pub(crate) fn read_pieces<T, F: FnOnce(&[u8]) -> Result<T>>(
        &mut self,
        pieces: &[(&wgpu::Buffer, u64, u64)],
        convert: F,
    ) -> Result<impl Future<Output = Result<T>> + use<T, F>> {
        let pending = self.record_pieces(pieces, convert)?;
        self.submit()?;
        Ok(pending)
    }

    fn record_pieces<T, F: FnOnce(&[u8]) -> Result<T>>(
        &mut self,
        pieces: &[(&wgpu::Buffer, u64, u64)],
        convert: F,
    ) -> Result<impl Future<Output = Result<T>> + use<T, F>> {
        let context = Rc::clone(&self.context);
        let total: u64 = pieces.iter().map(|piece| piece.2).sum();
        let (sender, mapped) = oneshot::channel();
        let owned =
            |&(buffer, offset, size): &(&wgpu::Buffer, u64, u64)| (buffer.clone(), offset, size);
        self.recorded.push(Command::Read(Readback {
            pieces: pieces.iter().map(owned).collect(),
            total,
            mapped: sender,
        }));
        self.pool.borrow_mut().recorded();
        Ok(async move {
            context.settle().await?;
            context.drive()?;
            let outcome = mapped.await;
            context.check_alive()?;
            let Ok(Ok(staging)) = outcome else {
                return Err(unreadable("its memory can't be mapped"));
            };
            let view = staging
                .get_mapped_range(..)
                .map_err(|error| unreadable(&error.to_string()))?;
            let values = convert(&view[..total as usize]);
            drop(view);
            staging.destroy();
            values
        })
    }

    /// In browsers, awaits the errors of all previous calls. Natively they were returned immediately.
    ///
    /// # Errors
    /// The first of them.
    pub fn settle(&self) -> impl Future<Output = Result<()>> + use<> {
        let context = Rc::clone(&self.context);
        async move { context.settle().await }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.uniform_buffer.destroy();
    }
}

/// Encodes a batch; consecutive dispatches share a pass. Returns the buffers of its readbacks.
fn encode(
    batch: &[Command],
    device: &wgpu::Device,
    encoder: &mut wgpu::CommandEncoder,
) -> Vec<wgpu::Buffer> {
    let mut slot = 0;
    let mut staging = Vec::new();
    for group in batch.chunk_by(|a, b| a.dispatch().is_some() && b.dispatch().is_some()) {
        if let [Command::Read(read)] = group {
            staging.push(read.encode(device, encoder));
            continue;
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for dispatch in group.iter().filter_map(Command::dispatch) {
            dispatch.encode(slot, &mut pass);
            slot += 1;
        }
    }
    staging
}

/// [`encode`] with each dispatch in its own pass, between two timestamps.
fn encode_timed(
    batch: &[Command],
    device: &wgpu::Device,
    encoder: &mut wgpu::CommandEncoder,
    timer: Option<&Timer>,
) -> Vec<wgpu::Buffer> {
    let mut slot = 0;
    let mut staging = Vec::new();
    for command in batch {
        let dispatch = match command {
            Command::Dispatch(dispatch) => dispatch,
            Command::Read(read) => {
                staging.push(read.encode(device, encoder));
                continue;
            }
        };
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(dispatch.name),
            timestamp_writes: timer.map(|timer| timer.around(slot)),
        });
        dispatch.encode(slot, &mut pass);
        slot += 1;
    }
    staging
}

fn unreadable(reason: &str) -> Error {
    Error::Unsupported(format!(
        "A tensor can't be read back from the GPU: {reason}."
    ))
}

/// The names of a batch's ops, without duplicates.
fn describe(batch: &[Command]) -> String {
    let name = |command: &Command| command.dispatch().map_or("a readback", |op| op.name);
    let mut names: Vec<_> = batch.iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    format!("{} ops ({})", batch.len(), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{context, read, stream};

    const DOUBLE: Kernel = Kernel {
        name: "double",
        sources: &["
            struct Params { factor: f32 }
            @group(0) @binding(0) var<uniform> params: Params;
            @group(0) @binding(1) var<storage, read> x: array<f32>;
            @group(0) @binding(2) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1)
            fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                y[id.x] = params.factor * x[id.x] + f32(SHIFT);
            }"],
        entry_point: "main",
    };

    fn double(stream: &mut Stream, x: &GpuTensor, factor: f32, shift: u32) -> GpuTensor {
        let y = stream.uninit(x.dims()).unwrap();
        stream
            .record(Op {
                kernel: DOUBLE,
                constants: (&["SHIFT"], &[shift]),
                uniforms: factor,
                reads: &[x.binding()],
                writes: &[y.binding()],
                workgroups: [x.len(), 1, 1],
                cost: Cost::default(),
            })
            .unwrap();
        y
    }

    #[test]
    fn a_chain_longer_than_a_batch_runs_in_order() {
        let Some(mut stream) = stream() else { return };
        let mut x = stream.upload(&[1.0, 2.0, 3.0], &[3]).unwrap();
        for step in 0..300 {
            x = double(&mut stream, &x, if step % 2 == 0 { 2.0 } else { 0.5 }, 1);
        }
        // v -> (2v + 1)/2 + 1 = v + 1.5, 150 times.
        assert_eq!(read(&mut stream, &x), [226.0, 227.0, 228.0]);
        assert_eq!(stream.dispatches(), 300);
        // Two alternating buffers, and none for the rest.
        assert_eq!(stream.memory().reserved, 2 * 256);
        assert_eq!(stream.pipelines.len(), 1);
    }

    #[test]
    fn constants_make_pipelines_of_their_own() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let (a, b) = (
            double(&mut stream, &x, 2.0, 3),
            double(&mut stream, &x, 2.0, 5),
        );
        assert_eq!(read(&mut stream, &a), [5.0]);
        assert_eq!(read(&mut stream, &b), [7.0]);
        assert_eq!(stream.pipelines.len(), 2);
    }

    #[test]
    fn an_upload_leaves_recorded_ops_their_input() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let first = x.buffer().clone();
        let y = double(&mut stream, &x, 2.0, 0);
        drop(x);
        let z = stream.upload(&[9.0], &[1]).unwrap();
        assert_eq!(read(&mut stream, &y), [2.0]);
        assert_eq!(read(&mut stream, &z), [9.0]);
        // The submitted batch no longer needs its buffer.
        assert_eq!(stream.upload(&[9.0], &[1]).unwrap().buffer(), &first);
    }

    #[test]
    fn a_repeated_forward_makes_no_bind_groups() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let mut forward = || {
            let y = double(&mut stream, &x, 2.0, 0);
            let z = double(&mut stream, &y, 2.0, 0);
            assert_eq!(read(&mut stream, &z), [4.0]);
            stream.bind_groups.len()
        };
        let first = forward();
        assert_eq!((first, forward(), forward()), (2, 2, 2));
        stream.trim();
        assert_eq!(stream.bind_groups.len(), 0);
    }

    #[test]
    fn the_second_forward_makes_no_bind_groups_in_whatever_order_buffers_were_freed() {
        let Some(mut stream) = stream() else { return };
        let mut forward = |input: f32| {
            let x = stream.upload(&[input], &[1]).unwrap();
            let (a, b) = (
                double(&mut stream, &x, 2.0, 0),
                double(&mut stream, &x, 3.0, 0),
            );
            let c = double(&mut stream, &b, 2.0, 1);
            drop(b);
            let d = double(&mut stream, &c, 1.0, 0);
            let e = double(&mut stream, &a, 1.0, 0);
            let found = (read(&mut stream, &d), read(&mut stream, &e));
            for freed in [d, a, x, e, c] {
                drop(freed);
            }
            (found, stream.bind_groups.len())
        };
        let (first, second) = (forward(1.0), forward(2.0));
        assert_eq!(first.0, (vec![7.0], vec![2.0]));
        assert_eq!(second.0, (vec![13.0], vec![4.0]));
        assert_eq!(first.1, second.1);
    }

    #[test]
    fn a_submission_holds_no_more_work_than_its_limit() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let y = stream.uninit(&[1]).unwrap();
        stream.limit_submissions(25);
        let mut submitted_after = |flop: u64| {
            let op = Op {
                kernel: DOUBLE,
                constants: (&["SHIFT"], &[0]),
                uniforms: 2.0f32,
                reads: &[x.binding()],
                writes: &[y.binding()],
                workgroups: [1, 1, 1],
                cost: Cost { flop, bytes: 0 },
            };
            stream.record(op).unwrap();
            stream.submitted_work()
        };
        let after: Vec<_> = [10, 10, 10, 5, 90, 10, 25].map(&mut submitted_after).into();
        // A dispatch beyond the limit is alone.
        assert_eq!(after, [0, 0, 20, 20, 35, 125, 135]);
        assert_eq!(read(&mut stream, &y), [2.0]);
        assert_eq!(stream.submitted_work(), 160);
    }

    #[test]
    fn moved_bytes_are_work_as_well() {
        let cost = |flop, bytes| Cost { flop, bytes }.work();
        assert_eq!((cost(100, 1), cost(1, 100)), (100, 400));
    }

    #[test]
    fn uploads_arrive_in_order_whatever_their_sizes() {
        let Some(mut stream) = stream() else { return };
        // Small uploads wait for the next submission, large ones don't.
        let large = vec![3.0; MAX_DEFERRED / 4 + 1];
        let x = stream.upload(&[1.0, 2.0], &[2]).unwrap();
        let buffer = x.buffer().clone();
        stream
            .write(&buffer, 0, bytemuck::bytes_of(&5.0f32))
            .unwrap();
        let big = stream.upload(&large, &[large.len()]).unwrap();
        stream
            .write(&buffer, 0, bytemuck::bytes_of(&7.0f32))
            .unwrap();
        let y = double(&mut stream, &x, 1.0, 0);
        assert_eq!(read(&mut stream, &y), [7.0, 2.0]);
        assert_eq!(read(&mut stream, &big), large);
    }

    #[test]
    fn a_plan_compiles_and_runs_nothing() {
        let Some(context) = context() else { return };
        let mut plan = Stream::planning(Rc::new(context)).unwrap();
        // Sizes far beyond a device's largest buffer are only shapes here.
        let x = plan.upload(&[1.0; 4096], &[4096]).unwrap();
        let y = double(&mut plan, &x, 2.0, 3);
        let _z = double(&mut plan, &y, 2.0, 4);
        assert_eq!((plan.pipelines.len(), plan.dispatches()), (2, 2));
        assert!(plan.recorded.is_empty() && plan.bind_groups.is_empty());
        assert_eq!(plan.memory().reserved, 3 * 256);
        let layer = crate::GpuLinear::new(&mut plan, 8, 8, Dtype::F16, true).unwrap();
        assert!(layer.check_complete().is_ok());
    }

    #[test]
    fn reads_are_part_of_their_ops_batch() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let y = double(&mut stream, &x, 2.0, 0);
        let first = stream.record_read(&y).unwrap();
        drop(y);
        // Reuses y's buffer after y was copied out.
        let z = double(&mut stream, &x, 3.0, 1);
        let second = stream.record_read(&z).unwrap();
        assert_eq!(stream.recorded.len(), 4);
        stream.submit().unwrap();
        assert_eq!(pollster::block_on(second).unwrap(), [4.0]);
        assert_eq!(pollster::block_on(first).unwrap(), [2.0]);
    }

    #[test]
    fn parameters_are_rounded_and_checked() {
        let Some(mut stream) = stream() else { return };
        let bytes = 1.001f32.to_le_bytes();
        let x = stream
            .upload_parameter(&bytes, Dtype::F32, Dtype::BF16, &[1])
            .unwrap();
        assert_eq!(read(&mut stream, &x), [1.0]);
        let mut code = |bytes: &[u8], dims: &[usize]| {
            let error = stream.upload_parameter(bytes, Dtype::F32, Dtype::F16, dims);
            error.err().unwrap().code()
        };
        assert_eq!(code(&1e6f32.to_le_bytes(), &[1]), "INVALID_CHECKPOINT");
        assert_eq!(code(&bytes, &[2]), "INVALID_ARGUMENT");
        assert_eq!(code(&bytes[..3], &[0]), "INVALID_ARGUMENT");
    }

    #[test]
    fn a_read_outlives_its_tensor_and_later_ops() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[4.0], &[1]).unwrap();
        let pending = stream.read(&x).unwrap();
        drop(x);
        let other = stream.upload(&[5.0], &[1]).unwrap();
        assert_eq!(read(&mut stream, &other), [5.0]);
        assert_eq!(pollster::block_on(pending).unwrap(), [4.0]);
    }

    #[test]
    fn a_refused_op_is_named_and_the_stream_goes_on() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let (reads, writes) = ([x.binding()], [stream.uninit(&[1]).unwrap().binding()]);
        let op = |kernel, workgroups| Op {
            kernel,
            constants: (&["SHIFT"], &[0]),
            uniforms: 1.0f32,
            reads: &reads,
            writes: &writes,
            workgroups,
            cost: Cost::default(),
        };
        // One binding, although the kernel has two.
        let one = Op {
            writes: &[],
            ..op(DOUBLE, [1, 1, 1])
        };
        let missing = stream.record(one).unwrap_err();
        let broken = Kernel {
            entry_point: "nowhere",
            ..DOUBLE
        };
        let unknown = stream.record(op(broken, [1, 1, 1])).unwrap_err();
        let huge = stream.record(op(DOUBLE, [65536, 1, 1])).unwrap_err();
        for error in [missing, unknown, huge] {
            assert_eq!(error.code(), "UNSUPPORTED");
            assert!(error.to_string().contains("double"), "{error}");
        }
        let y = double(&mut stream, &x, 3.0, 0);
        assert_eq!(read(&mut stream, &y), [3.0]);
    }

    #[test]
    fn a_destroyed_device_refuses_every_call() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let pending = stream.read(&x).unwrap();
        stream.context().destroy();
        let error = pollster::block_on(pending).unwrap_err();
        assert_eq!(error.code(), "DISPOSED");
        assert_eq!(stream.read(&x).err().unwrap().code(), "DISPOSED");
        assert_eq!(
            stream.upload(&[1.0], &[1]).err().unwrap().code(),
            "DISPOSED"
        );
    }
}
