//! Compiled kernels, by kernel and constants.

use std::collections::HashMap;
use std::fmt::Write;

use vit_msn_tensor::Result;

use crate::context::Context;

/// A WGSL module and the entry point in it. Binding 0 holds the uniforms, the bindings from 1 on the tensors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    /// The op's name, for errors and GPU debuggers.
    pub name: &'static str,
    pub source: &'static str,
    pub entry_point: &'static str,
}

/// Constants that the module refers to and doesn't define. They are written in front of it, and not pipeline
/// overrides, since they size arrays in functions.
pub(crate) type Constants = &'static [&'static str];

/// Every pipeline that was asked for so far.
#[derive(Default)]
pub(crate) struct PipelineCache {
    pipelines: HashMap<(Kernel, Vec<u32>), wgpu::ComputePipeline>,
}

impl PipelineCache {
    /// The pipeline of `kernel` with `values` for the constants called `names`, compiled on its first use.
    /// Errors: UNSUPPORTED naming the op when the device refuses it, DISPOSED when it is lost.
    pub fn get(
        &mut self,
        context: &Context,
        kernel: Kernel,
        names: Constants,
        values: &[u32],
    ) -> Result<wgpu::ComputePipeline> {
        let key = (kernel, values.to_vec());
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = compile(
            context,
            kernel,
            &with_constants(kernel.source, names, values),
        )?;
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// How many were compiled.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.pipelines.len()
    }
}

fn with_constants(source: &str, names: Constants, values: &[u32]) -> String {
    let mut text = String::new();
    for (name, value) in names.iter().zip(values) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    text + source
}

fn compile(context: &Context, kernel: Kernel, source: &str) -> Result<wgpu::ComputePipeline> {
    let device = context.device();
    context.checked(kernel.name, || {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    })
}
