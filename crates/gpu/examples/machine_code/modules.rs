//! The kernels of forwards, from planning streams.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use vit_msn_gpu::{
    Context, ContextOptions, LayerShape, Module, RequestedLimits, Stream, choose_linear_tile,
    linear_tiles,
};
use vit_msn_tensor::{Dtype, Result as TensorResult};
use wgpu::naga::ShaderStage;
use wgpu::naga::back::spv;
use wgpu::naga::front::wgsl;
use wgpu::naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use wgpu::naga::valid::{
    Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
};

use self::model::{Model, Size};

#[path = "../support/model.rs"]
mod model;

/// Writes each kernel's WGSL and SPIR-V as INDEX.wgsl and INDEX.naga.spv, and prints "INDEX NAME".
pub fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    for (index, (name, source)) in all()?.into_iter().enumerate() {
        fs::write(folder.join(format!("{index}.wgsl")), &source)?;
        fs::write(folder.join(format!("{index}.naga.spv")), spirv(&source)?)?;
        println!("{index} {name}");
    }
    Ok(())
}

/// The sources by name.
fn all() -> TensorResult<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for limits in [RequestedLimits::WebGpu, RequestedLimits::Adapter] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8] {
            let context = pollster::block_on(Context::new(ContextOptions {
                allow_software: true,
                limits,
            }))?;
            let mut plan = Stream::planning(Rc::new(context.as_a_gpu()))?;
            forwards(&mut plan, dtype)?;
            let modules = plan.modules();
            found.extend(
                modules
                    .into_iter()
                    .map(|Module { name, source }| (name, source)),
            );
        }
    }
    Ok(found)
}

/// Plans forwards of one and of eight images with every tile.
fn forwards(plan: &mut Stream, dtype: Dtype) -> TensorResult<()> {
    let size = || Size {
        width: 384,
        layers: 1,
        heads: 6,
        patch: 16,
    };
    let image = 224;
    for batch in [1, 8] {
        let pixels = plan.upload(
            &vec![0.0; batch * 3 * image * image],
            &[batch, 3, image, image],
        )?;
        let model = Model::new(plan, size(), image, dtype)?;
        for which in 0.. {
            if !choose_tiles(plan, batch, dtype, which)? {
                break;
            }
            model.forward(plan, &pixels)?;
        }
    }
    Ok(())
}

/// Chooses the tile number `which` for each of the layers, if there is one.
fn choose_tiles(plan: &mut Stream, batch: usize, dtype: Dtype, which: usize) -> TensorResult<bool> {
    let mut any = false;
    for (rows, inputs, outputs) in [
        (batch * 197, 384, 1152),
        (batch * 197, 384, 384),
        (batch * 197, 384, 1536),
        (batch * 197, 1536, 384),
    ] {
        let shape = LayerShape {
            rows,
            inputs,
            outputs,
            dtype,
        };
        if let Some(&id) = linear_tiles(plan, shape).get(which) {
            choose_linear_tile(plan, shape, id)?;
            any = true;
        }
    }
    Ok(any)
}

/// As wgpu has it compiled for drivers with robustBufferAccess2.
fn spirv(source: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let module = wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)?;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            ..BoundsCheckPolicies::default()
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: true,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: "main".to_string(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
}
