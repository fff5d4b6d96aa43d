//! The time of each op of a stream, from timestamp queries, along with its work.

use vit_msn_tensor::{Result, try_vec};

use crate::buffers::Binding;
use crate::context::Context;

/// The work of one dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flop: u64,
    /// Bytes that its workgroups read from and write to device memory, ignoring caches.
    pub bytes: u64,
}

/// Floating-point operations in the time in which a byte is moved: about what GPUs with shared memory do.
const FLOP_PER_BYTE: u64 = 4;

impl Cost {
    /// A measure of the time on the device, in floating-point operations.
    pub fn work(&self) -> u64 {
        self.flop.max(FLOP_PER_BYTE.saturating_mul(self.bytes))
    }
}

/// One dispatch of a profiled stream.
#[derive(Debug, Clone, PartialEq)]
pub struct OpProfile {
    /// The op.
    pub name: &'static str,
    /// Time on the device, or None if the device has no timestamp queries.
    pub nanoseconds: Option<f64>,
    /// Floating-point operations; a multiply-add is two.
    pub flop: u64,
    /// Bytes that its workgroups read and write, ignoring caches.
    pub bytes: u64,
    /// Bytes of its tensors, each counted once: the minimum for any kernel.
    pub min_bytes: u64,
    /// Workgroups.
    pub workgroups: u64,
}

/// A submitted batch: its ops, and the buffer for their timestamps.
pub(crate) struct ProfiledBatch {
    pub ops: Vec<OpProfile>,
    pub timestamps: Option<wgpu::Buffer>,
}

/// The timestamps of a batch while it is being encoded.
pub(crate) struct Timer {
    queries: wgpu::QuerySet,
    buffer: wgpu::Buffer,
}

impl Timer {
    /// For `count` dispatches, or None if the device has no timestamp queries.
    pub fn new(context: &Context, count: usize) -> Option<Self> {
        if !context.has(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let device = context.device();
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * count as u32,
        });
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: 16 * count as u64,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Some(Self { queries, buffer })
    }

    /// The timestamp writes for the pass around dispatch `index`.
    pub fn around(&self, index: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * index as u32),
            end_of_pass_write_index: Some(2 * index as u32 + 1),
        }
    }

    /// Ends the batch. The returned buffer holds its timestamps once it has run.
    pub fn resolve(self, encoder: &mut wgpu::CommandEncoder) -> wgpu::Buffer {
        let count = self.buffer.size() as u32 / 8;
        encoder.resolve_query_set(&self.queries, 0..count, &self.buffer, 0);
        self.buffer
    }
}

/// The total size of the buffers, each counted once.
pub(crate) fn min_bytes(buffers: &[Binding]) -> u64 {
    let distinct = buffers
        .iter()
        .enumerate()
        .filter(|&(index, binding)| !buffers[..index].contains(binding));
    distinct.map(|(_, binding)| binding.bytes).sum()
}

/// Sets the times from the begin and end timestamps of all ops, in ticks of `period` nanoseconds.
pub(crate) fn set_times(ops: &mut [OpProfile], timestamps: &[u8], period: f32) -> Result<()> {
    let mut ticks: Vec<u64> = try_vec(timestamps.len() / 8)?;
    for (tick, bytes) in ticks.iter_mut().zip(timestamps.as_chunks::<8>().0) {
        *tick = u64::from_le_bytes(*bytes);
    }
    for (op, pair) in ops.iter_mut().zip(ticks.as_chunks::<2>().0) {
        // With some drivers, clocks run backwards between passes.
        let ticks = pair[1].saturating_sub(pair[0]);
        op.nanoseconds = Some(ticks as f64 * f64::from(period));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{context_with, stream_on, wait};
    use crate::{RequestedLimits, Stream, layer_norm};

    #[test]
    fn each_dispatch_is_listed_with_its_work() {
        for limits in [RequestedLimits::WebGpu, RequestedLimits::Adapter] {
            let Some(context) = context_with(limits) else {
                return;
            };
            let timed = context.has(wgpu::Features::TIMESTAMP_QUERY);
            let mut stream = stream_on(context);
            let x = stream.upload(&[1.0; 64], &[4, 16]).unwrap();
            let one = stream.upload(&[1.0; 16], &[16]).unwrap();
            let norm = |stream: &mut Stream| layer_norm(stream, &x, &one, &one, 1e-6).unwrap();
            // Recorded before the profile starts, so not part of it.
            let _before = norm(&mut stream);
            stream.start_profile().unwrap();
            let _kept = (norm(&mut stream), norm(&mut stream));
            let profile = wait(stream.finish_profile());
            assert_eq!(profile.len(), 2);
            for op in profile {
                assert_eq!((op.name, op.workgroups), ("layer_norm", 4));
                // x, weight and bias (one buffer here), y.
                assert_eq!(op.min_bytes, 4 * (64 + 16 + 64));
                assert!(op.bytes >= op.min_bytes && op.flop > 0);
                assert_eq!(op.nanoseconds.is_some(), timed);
            }
            let _after = norm(&mut stream);
            assert_eq!(wait(stream.finish_profile()), []);
        }
    }

    #[test]
    fn ticks_become_nanoseconds() {
        let op = OpProfile {
            name: "op",
            nanoseconds: None,
            flop: 0,
            bytes: 0,
            min_bytes: 0,
            workgroups: 1,
        };
        let mut ops = [op.clone(), op];
        let ticks = [10u64, 14, 20, 19].map(u64::to_le_bytes).concat();
        set_times(&mut ops, &ticks, 2.5).unwrap();
        assert_eq!(ops.map(|op| op.nanoseconds), [Some(10.0), Some(0.0)]);
    }
}
