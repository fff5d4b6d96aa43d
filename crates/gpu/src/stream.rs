//! A stream of ops: recorded one by one, submitted together, read back only on request.

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::rc::Rc;

use bytemuck::NoUninit;
use futures_channel::oneshot;
use vit_msn_tensor::{Dtype, Error, Result, check_len, try_vec};

use crate::buffers::{BufferPool, GpuTensor, Memory};
use crate::context::Context;
use crate::pipelines::{Constants, Kernel, PipelineCache};

/// Uniforms start at multiples of this: the default min_uniform_buffer_offset_alignment, the largest there is.
const UNIFORM_SLOT: usize = 256;

/// Dispatches of one submission at most: more than a forward of ViT-MSN large takes (24 layers of 7, and 6).
const MAX_DISPATCHES: usize = 256;

/// One run of a kernel.
pub(crate) struct Op<'a, Uniforms> {
    pub kernel: Kernel,
    /// The names and values of the kernel's constants.
    pub constants: (Constants, &'a [u32]),
    /// Binding 0.
    pub uniforms: Uniforms,
    /// The bindings from 1 on. The one that is written must not be among the others.
    pub tensors: &'a [&'a GpuTensor],
    pub workgroups: [usize; 3],
}

struct Dispatch {
    name: &'static str,
    pipeline: wgpu::ComputePipeline,
    /// Each binding's buffer and how much of it.
    bindings: Vec<(wgpu::Buffer, u64)>,
    uniform_bytes: u64,
    workgroups: [u32; 3],
}

/// Records ops on one device and submits them together. Dropping it doesn't submit.
pub struct Stream {
    context: Rc<Context>,
    pool: Rc<RefCell<BufferPool>>,
    pipelines: PipelineCache,
    /// Of the batch that is being recorded: each dispatch's, one slot apiece.
    uniforms: Vec<u8>,
    uniform_buffer: wgpu::Buffer,
    recorded: Vec<Dispatch>,
    dispatches: u64,
}

impl Stream {
    /// A stream on the context's device. Errors: OUT_OF_MEMORY, DISPOSED when the device is lost.
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
            uniforms: Vec::new(),
            uniform_buffer,
            recorded: Vec::new(),
            dispatches: 0,
        })
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Device memory of this stream's tensors.
    pub fn memory(&self) -> Memory {
        self.pool.borrow().memory()
    }

    /// Gives the memory of dropped tensors back to the device.
    pub fn trim(&mut self) {
        self.pool.borrow_mut().trim();
    }

    /// Kernels run since the stream was made, recorded ones included.
    pub fn dispatches(&self) -> u64 {
        self.dispatches
    }

    /// Copies `data` to the device as a tensor of shape `dims`.
    /// Errors: INVALID_ARGUMENT, UNSUPPORTED, OUT_OF_MEMORY, DISPOSED.
    pub fn upload(&mut self, data: &[f32], dims: &[usize]) -> Result<GpuTensor> {
        check_len("The data", data.len(), dims)?;
        // A write runs before the commands that are submitted after it: those recorded earlier may still need
        // what this buffer held.
        self.submit()?;
        let tensor = self.uninit(dims)?;
        self.context.checked("an upload", || {
            self.context
                .queue()
                .write_buffer(tensor.buffer(), 0, bytemuck::cast_slice(data));
        })?;
        Ok(tensor)
    }

    /// A tensor for an op to fill.
    pub(crate) fn uninit(&mut self, dims: &[usize]) -> Result<GpuTensor> {
        GpuTensor::uninit(&self.context, &self.pool, dims)
    }

    /// Adds an op to the batch.
    /// Errors: UNSUPPORTED naming the op when it has too many workgroups or the device refuses it, DISPOSED.
    pub(crate) fn record<Uniforms: NoUninit>(&mut self, op: Op<'_, Uniforms>) -> Result<()> {
        let workgroups = self.check_workgroups(op.kernel.name, op.workgroups)?;
        let (names, values) = op.constants;
        let pipeline = self
            .pipelines
            .get(&self.context, op.kernel, names, values)?;
        if self.recorded.len() == MAX_DISPATCHES {
            self.submit()?;
        }
        let uniforms = bytemuck::bytes_of(&op.uniforms);
        self.uniforms.extend_from_slice(uniforms);
        self.uniforms
            .resize((self.recorded.len() + 1) * UNIFORM_SLOT, 0);
        self.recorded.push(Dispatch {
            name: op.kernel.name,
            pipeline,
            bindings: op
                .tensors
                .iter()
                .map(|tensor| (tensor.buffer().clone(), tensor.byte_size()))
                .collect(),
            uniform_bytes: uniforms.len() as u64,
            workgroups,
        });
        self.dispatches += 1;
        Ok(())
    }

    fn check_workgroups(&self, name: &str, workgroups: [usize; 3]) -> Result<[u32; 3]> {
        let most = self.context.limits().max_compute_workgroups_per_dimension;
        if workgroups.iter().any(|&count| count > most as usize) {
            return Err(Error::Unsupported(format!(
                "{name} would need {workgroups:?} workgroups, and this GPU device runs {most} a dimension at most: use a smaller batch or picture."
            )));
        }
        Ok(workgroups.map(|count| count as u32))
    }

    /// Hands the recorded ops to the device as one command buffer, without waiting for them.
    /// Errors: as recorded ops have; in browsers they come with the next [`Stream::read`].
    pub fn submit(&mut self) -> Result<()> {
        if self.recorded.is_empty() {
            return Ok(());
        }
        let batch = mem::take(&mut self.recorded);
        let uniforms = mem::take(&mut self.uniforms);
        let (device, queue) = (self.context.device(), self.context.queue());
        self.context.checked(&describe(&batch), || {
            queue.write_buffer(&self.uniform_buffer, 0, &uniforms);
            let mut encoder = device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for (slot, dispatch) in batch.iter().enumerate() {
                let [x, y, z] = dispatch.workgroups;
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &self.bind(slot, dispatch), &[]);
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            queue.submit([encoder.finish()]);
        })
    }

    fn bind(&self, slot: usize, dispatch: &Dispatch) -> wgpu::BindGroup {
        let uniforms = (
            &self.uniform_buffer,
            (slot * UNIFORM_SLOT) as u64,
            dispatch.uniform_bytes,
        );
        let tensors = dispatch
            .bindings
            .iter()
            .map(|(buffer, size)| (buffer, 0, *size));
        let entries: Vec<_> = std::iter::once(uniforms)
            .chain(tensors)
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
        self.context
            .device()
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(dispatch.name),
                layout: &dispatch.pipeline.get_bind_group_layout(0),
                entries: &entries,
            })
    }

    /// Submits what was recorded and copies the tensor out. The copy is under way when this returns: the tensor may
    /// be dropped and further ops recorded before the result is awaited. Natively, awaiting blocks.
    /// Errors: those of the ops before it, OUT_OF_MEMORY, DISPOSED when the device is lost.
    pub fn read(
        &mut self,
        tensor: &GpuTensor,
    ) -> Result<impl Future<Output = Result<Vec<f32>>> + use<>> {
        self.submit()?;
        let (context, size) = (Rc::clone(&self.context), tensor.byte_size());
        let (sender, mapped) = oneshot::channel();
        let staging = context.checked("a readback", || {
            let staging = context.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = context.device().create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(tensor.buffer(), 0, &staging, 0, size);
            context.queue().submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // Nobody listens once the caller has dropped the future.
                let _ = sender.send(result);
            });
            staging
        })?;
        Ok(async move {
            context.settle().await?;
            context.drive()?;
            let outcome = mapped.await;
            context.check_alive()?;
            if !matches!(outcome, Ok(Ok(()))) {
                return Err(unreadable("its memory can't be mapped"));
            }
            let mut values = try_vec(size as usize / 4)?;
            let view = staging
                .get_mapped_range(..)
                .map_err(|error| unreadable(&error.to_string()))?;
            Dtype::F32.decode(&view, &mut values)?;
            Ok(values)
        })
    }
}

fn unreadable(reason: &str) -> Error {
    Error::Unsupported(format!("The GPU doesn't give a tensor back: {reason}."))
}

/// The ops of a batch by name, each once.
fn describe(batch: &[Dispatch]) -> String {
    let mut names: Vec<_> = batch.iter().map(|dispatch| dispatch.name).collect();
    names.sort_unstable();
    names.dedup();
    format!("{} ops ({})", batch.len(), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{read, stream};

    const DOUBLE: Kernel = Kernel {
        name: "double",
        source: "
            struct Params { factor: f32 }
            @group(0) @binding(0) var<uniform> params: Params;
            @group(0) @binding(1) var<storage, read> x: array<f32>;
            @group(0) @binding(2) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1)
            fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                y[id.x] = params.factor * x[id.x] + f32(SHIFT);
            }",
        entry_point: "main",
    };

    fn double(stream: &mut Stream, x: &GpuTensor, factor: f32, shift: u32) -> GpuTensor {
        let y = stream.uninit(x.dims()).unwrap();
        stream
            .record(Op {
                kernel: DOUBLE,
                constants: (&["SHIFT"], &[shift]),
                uniforms: factor,
                tensors: &[x, &y],
                workgroups: [x.len(), 1, 1],
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
        // Two buffers in turn and none for the rest.
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
    fn an_upload_into_a_recycled_buffer_leaves_recorded_ops_their_input() {
        let Some(mut stream) = stream() else { return };
        let x = stream.upload(&[1.0], &[1]).unwrap();
        let y = double(&mut stream, &x, 2.0, 0);
        drop(x);
        let z = stream.upload(&[9.0], &[1]).unwrap();
        assert_eq!(read(&mut stream, &y), [2.0]);
        assert_eq!(read(&mut stream, &z), [9.0]);
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
        let tensors = [&x];
        let op = |kernel, workgroups| Op {
            kernel,
            constants: (&["SHIFT"], &[0]),
            uniforms: 1.0f32,
            tensors: &tensors,
            workgroups,
        };
        // One tensor where the kernel has two.
        stream.record(op(DOUBLE, [1, 1, 1])).unwrap();
        let missing = stream.submit().unwrap_err();
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
        assert_eq!(pollster::block_on(pending).unwrap_err().code(), "DISPOSED");
        assert_eq!(stream.read(&x).err().unwrap().code(), "DISPOSED");
        assert_eq!(
            stream.upload(&[1.0], &[1]).err().unwrap().code(),
            "DISPOSED"
        );
    }
}
