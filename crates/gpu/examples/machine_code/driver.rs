//! Compiles SPIR-V by a Vulkan driver and asks it for statistics and assembly, by VK_KHR_pipeline_executable_properties.
//! Mesa's RADV does so without a GPU, if RADV_FORCE_FAMILY names one.

use std::error::Error;
use std::ffi::CStr;
use std::fs;

use ash::khr::pipeline_executable_properties as executables;
use ash::vk;

/// The binding 0 of a kernel is its uniforms, and the others are storage buffers.
const MAX_BINDINGS: u32 = 9;

/// Prints "FILE NAME=VALUE …" for each file and writes FILE.s.
pub fn compile(files: &[String]) -> Result<(), Box<dyn Error>> {
    // SAFETY: the Vulkan loader and the driver are trusted code of this machine.
    let entry = unsafe { ash::Entry::load()? };
    let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
    let info = vk::InstanceCreateInfo::default().application_info(&application);
    // SAFETY: all handles below are used while the instance and the device exist, by one thread, and every create
    // info points to values that outlive the call. Nothing is destroyed before the process ends.
    unsafe {
        let instance = entry.create_instance(&info, None)?;
        let driver = Driver::open(&instance)?;
        for file in files {
            let words = ash::util::read_spv(&mut fs::File::open(file)?)?;
            let (statistics, assembly) = driver.compile(&words)?;
            fs::write(format!("{file}.s"), assembly)?;
            println!("{file} {}", statistics.join(" "));
        }
    }
    Ok(())
}

struct Driver {
    device: ash::Device,
    executables: executables::Device,
    layout: vk::PipelineLayout,
}

impl Driver {
    /// The first physical device.
    unsafe fn open(instance: &ash::Instance) -> Result<Self, Box<dyn Error>> {
        // SAFETY: see `compile`.
        unsafe {
            let devices = instance.enumerate_physical_devices()?;
            let physical = *devices.first().ok_or("There is no Vulkan device.")?;
            let mut version = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut version);
            instance.get_physical_device_properties2(physical, &mut properties);
            let name = properties
                .properties
                .device_name_as_c_str()?
                .to_string_lossy()
                .into_owned();
            let driver = version.driver_info_as_c_str()?.to_string_lossy();
            println!("# {name}, {driver}");
            let mut reports = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
            let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
            // Everything that the device has.
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut reports)
                .push_next(&mut v13)
                .push_next(&mut v12)
                .push_next(&mut v11);
            instance.get_physical_device_features2(physical, &mut features);
            let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let extensions = [executables::NAME.as_ptr()];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&extensions)
                .push_next(&mut features);
            let device = instance.create_device(physical, &info, None)?;
            Ok(Self {
                executables: executables::Device::new(instance, &device),
                layout: layout(&device)?,
                device,
            })
        }
    }

    /// The statistics as NAME=VALUE, and the assembly.
    unsafe fn compile(&self, words: &[u32]) -> Result<(Vec<String>, Vec<u8>), Box<dyn Error>> {
        // SAFETY: see `compile`.
        unsafe {
            let info = vk::ShaderModuleCreateInfo::default().code(words);
            let module = self.device.create_shader_module(&info, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let info = vk::ComputePipelineCreateInfo::default()
                .flags(
                    vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                        | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
                )
                .stage(stage)
                .layout(self.layout);
            let cache = vk::PipelineCache::null();
            let pipelines = self.device.create_compute_pipelines(cache, &[info], None);
            let pipeline = pipelines.map_err(|(_, error)| error)?[0];
            let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            Ok((self.statistics(&which)?, self.assembly(&which)?))
        }
    }

    unsafe fn statistics(
        &self,
        which: &vk::PipelineExecutableInfoKHR,
    ) -> Result<Vec<String>, Box<dyn Error>> {
        // SAFETY: see `compile`. The values of all statistics of this driver are unsigned.
        let statistics = unsafe { self.executables.get_pipeline_executable_statistics(which)? };
        let text = |statistic: &vk::PipelineExecutableStatisticKHR| {
            let name = statistic
                .name_as_c_str()?
                .to_string_lossy()
                .replace(' ', "_");
            // SAFETY: as above.
            Ok(format!("{name}={}", unsafe { statistic.value.u64 }))
        };
        statistics.iter().map(text).collect()
    }

    unsafe fn assembly(
        &self,
        which: &vk::PipelineExecutableInfoKHR,
    ) -> Result<Vec<u8>, Box<dyn Error>> {
        let read = self
            .executables
            .fp()
            .get_pipeline_executable_internal_representations_khr;
        let device = self.device.handle();
        // SAFETY: see `compile`. The first call asks for the number of texts, the second for their sizes and the
        // third for the texts, for which there is room.
        unsafe {
            let mut count = 0;
            read(device, which, &mut count, std::ptr::null_mut()).result()?;
            let mut texts =
                vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            read(device, which, &mut count, texts.as_mut_ptr()).result()?;
            let mut rooms: Vec<Vec<u8>> =
                texts.iter().map(|text| vec![0; text.data_size]).collect();
            for (text, room) in texts.iter_mut().zip(&mut rooms) {
                text.p_data = room.as_mut_ptr().cast();
            }
            read(device, which, &mut count, texts.as_mut_ptr()).result()?;
            let at = texts
                .iter()
                .position(|text| text.name_as_c_str() == Ok::<&CStr, _>(c"Assembly"))
                .ok_or("The driver gives no assembly.")?;
            let end = rooms[at].iter().position(|&byte| byte == 0);
            rooms[at].truncate(end.unwrap_or(usize::MAX));
            Ok(std::mem::take(&mut rooms[at]))
        }
    }
}

unsafe fn layout(device: &ash::Device) -> Result<vk::PipelineLayout, vk::Result> {
    let bindings: Vec<_> = (0..MAX_BINDINGS)
        .map(|binding| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(binding)
                .descriptor_type(match binding {
                    0 => vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC,
                    _ => vk::DescriptorType::STORAGE_BUFFER,
                })
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        })
        .collect();
    let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
    // SAFETY: see `compile`.
    unsafe {
        let sets = [device.create_descriptor_set_layout(&info, None)?];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        device.create_pipeline_layout(&info, None)
    }
}
