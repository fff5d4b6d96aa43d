//! Compiled kernels, cached by kernel and constants.

use std::collections::HashMap;
use std::fmt::Write;

use vit_msn_tensor::Result;

use crate::context::Context;

/// A WGSL module and its entry point. Binding 0 is the uniforms, followed by the buffers that are read, then those
/// that are written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    /// The op's name, for errors and GPU debuggers.
    pub name: &'static str,
    /// The module's source in parts: shared code, then the kernel.
    pub sources: &'static [&'static str],
    pub entry_point: &'static str,
}

/// Constants      that the module uses but doesn't define. They are prepended to the source rather than set as
///                pipeline overrides, because they size arrays in functions.
pub(crate) type Constants = &'static [&'static str];

/// A source part that enables subgroups. naga supports them without the directive, which it doesn't know yet.
pub(crate) const ENABLE_SUBGROUPS: &str = if cfg!(target_arch = "wasm32") {
    "enable subgroups;\n"
} else {
    ""
};

/// The number of buffers that a kernel reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Arity {
    pub reads: usize,
    pub writes: usize,
}

/// All pipelines and layouts created so far.
#[derive(Default)]
pub(crate) struct PipelineCache {
    layouts: HashMap<Arity, wgpu::BindGroupLayout>,
    pipelines: HashMap<(Kernel, Vec<u32>), wgpu::ComputePipeline>,
}

impl PipelineCache {
    /// The bind group layout of a kernel: uniforms with a dynamic offset, then storage buffers.
    pub fn layout(&mut self, context: &Context, arity: Arity) -> &wgpu::BindGroupLayout {
        self.layouts
            .entry(arity)
            .or_insert_with(|| layout_of(context, arity))
    }

    /// The pipeline of `kernel` with `values` for the constants called `names`, compiled on first use.
    ///
    /// # Errors
    /// UNSUPPORTED, naming the op, if the device refuses it; ENGINE_DEAD if the device is lost.
    pub fn get(
        &mut self,
        context: &Context,
        kernel: Kernel,
        arity: Arity,
        names: Constants,
        values: &[u32],
    ) -> Result<wgpu::ComputePipeline> {
        let key = (kernel, values.to_vec());
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let source = with_constants(kernel.sources, names, values);
        let layout = self.layout(context, arity).clone();
        let pipeline = compile(context, kernel, &layout, &source)?;
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// The number of compiled pipelines.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.pipelines.len()
    }
}

fn layout_of(context: &Context, arity: Arity) -> wgpu::BindGroupLayout {
    let buffer = |binding: usize, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset,
            min_binding_size: None,
        },
        count: None,
    };
    let storage = |index: usize| {
        let read_only = index < arity.reads;
        let ty = wgpu::BufferBindingType::Storage { read_only };
        buffer(1 + index, ty, false)
    };
    let mut entries = vec![buffer(0, wgpu::BufferBindingType::Uniform, true)];
    entries.extend((0..arity.reads + arity.writes).map(storage));
    context
        .device()
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        })
}

fn with_constants(sources: &[&str], names: Constants, values: &[u32]) -> String {
    let is_directive = |part: &&&str| part.starts_with("enable ");
    // WGSL requires directives to come first.
    let mut text: String = sources.iter().filter(is_directive).copied().collect();
    for (name, value) in names.iter().zip(values) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    text.extend(sources.iter().filter(|part| !is_directive(part)).copied());
    text
}

fn compile(
    context: &Context,
    kernel: Kernel,
    layout: &wgpu::BindGroupLayout,
    source: &str,
) -> Result<wgpu::ComputePipeline> {
    let device = context.device();
    context.checked(kernel.name, || {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(kernel.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes its workgroup memory before reading it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    })
}
