//! Compiled kernels, cached by kernel and constants.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{Hash, Hasher};

use vit_msn_tensor::{Error, Result};

use crate::context::Context;
use crate::template::expand;

/// A WGSL module and its entry point. Binding 0 is the uniforms, followed by the buffers that are read, then those
/// that are written.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// The op's name, for errors and GPU debuggers.
    pub name: &'static str,
    /// The module's source in parts: shared code, then the kernel.
    pub sources: &'static [&'static str],
    pub entry_point: &'static str,
}

impl Kernel {
    /// Identifies it at every dispatch without reading its text.
    fn address(&self) -> (*const &'static str, usize, *const u8) {
        let Self {
            sources,
            entry_point,
            ..
        } = self;
        (sources.as_ptr(), sources.len(), entry_point.as_ptr())
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for Kernel {}

impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
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
    pipelines: HashMap<(Kernel, Vec<u32>), Compiled>,
}

struct Compiled {
    pipeline: wgpu::ComputePipeline,
    label: String,
    names: Constants,
}

/// The WGSL of a compiled kernel.
pub struct Module {
    /// The op, its source files and constants.
    pub name: String,
    /// The text that the device got.
    pub source: String,
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
        if let Some(compiled) = self.pipelines.get(&key) {
            check_accepted(context, kernel, &compiled.label)?;
            return Ok(compiled.pipeline.clone());
        }
        let source = with_constants(kernel.sources, names, values);
        let label = label(kernel, arity, &source);
        check_accepted(context, kernel, &label)?;
        let layout = self.layout(context, arity).clone();
        let pipeline = compile(context, kernel, &label, &layout, &source)?;
        let compiled = Compiled {
            pipeline: pipeline.clone(),
            label,
            names,
        };
        self.pipelines.insert(key, compiled);
        Ok(pipeline)
    }

    #[cfg(test)]
    pub fn labels(&self) -> Vec<String> {
        let compiled = self.pipelines.values();
        compiled.map(|compiled| compiled.label.clone()).collect()
    }

    /// All kernels compiled so far.
    pub fn modules(&self) -> Vec<Module> {
        let module = |((kernel, values), compiled): (&(Kernel, Vec<u32>), &Compiled)| Module {
            name: describe(*kernel, compiled.names, values),
            source: with_constants(kernel.sources, compiled.names, values),
        };
        self.pipelines.iter().map(module).collect()
    }

    /// The number of compiled pipelines.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.pipelines.len()
    }
}

/// A kernel's op, the names with which its source files begin, and its constants.
fn describe(kernel: Kernel, names: Constants, values: &[u32]) -> String {
    let name_of = |source: &&str| {
        source
            .strip_prefix("// ")?
            .split(':')
            .next()
            .map(str::to_string)
    };
    let sources: Vec<_> = kernel.sources.iter().filter_map(name_of).collect();
    let mut text = format!("{} {}", kernel.name, sources.join("+"));
    for (name, value) in names.iter().zip(values) {
        // Writing to a string can't fail.
        let _ = write!(text, " {name}={value}");
    }
    text
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
    let constants: Vec<_> = names.iter().copied().zip(values.iter().copied()).collect();
    expand(&text, &constants)
}

/// Names a pipeline by its op, bindings and text (FNV-1a), so that code that compiles it elsewhere can report a refusal.
fn label(kernel: Kernel, arity: Arity, source: &str) -> String {
    let hash = source
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let Arity { reads, writes } = arity;
    format!(
        "{} {} {reads} {writes} {hash:016x}",
        kernel.name, kernel.entry_point
    )
}

/// # Errors
/// UNSUPPORTED if the driver refused the pipeline before.
fn check_accepted(context: &Context, kernel: Kernel, label: &str) -> Result<()> {
    if !context.refuses(label) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "The GPU's driver refuses the kernel of {}: update the driver, or use device \"wasm\".",
        kernel.name
    )))
}

fn compile(
    context: &Context,
    kernel: Kernel,
    label: &str,
    layout: &wgpu::BindGroupLayout,
    source: &str,
) -> Result<wgpu::ComputePipeline> {
    let device = context.device();
    context.checked_pipeline(label, kernel.name, || {
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
            label: Some(label),
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
