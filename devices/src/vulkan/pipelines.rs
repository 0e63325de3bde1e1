use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vulkano::descriptor_set::layout::{
    DescriptorSetLayout, DescriptorSetLayoutBinding, DescriptorSetLayoutCreateInfo, DescriptorType,
};
use vulkano::pipeline::compute::ComputePipelineCreateInfo;
use vulkano::pipeline::layout::{PipelineLayoutCreateInfo, PushConstantRange};
use vulkano::pipeline::{ComputePipeline, PipelineLayout, PipelineShaderStageCreateInfo};
use vulkano::shader::spirv::bytes_to_words;
use vulkano::shader::{ShaderModule, ShaderModuleCreateInfo, ShaderStages};

use crate::backend::DeviceError;
use crate::kernels::{Element, Kernel, MAX_PARAMS_WORDS, spirv};

use super::gpu::Gpu;

/// A GPU body, ready to dispatch: storage buffers in set 0, parameters as push constants.
pub(super) struct Pipeline {
    pub(super) pipeline: Arc<ComputePipeline>,
    pub(super) layout: Arc<PipelineLayout>,
    pub(super) set_layout: Arc<DescriptorSetLayout>,
}

/// Every pipeline made so far, by the name of its SPIR-V module.
#[derive(Default)]
pub(super) struct Pipelines(Mutex<HashMap<String, Arc<Pipeline>>>);

impl Pipelines {
    /// The pipeline of `kernel` for weights of `scheme`, made when it is first asked for.
    ///
    /// # Errors
    /// When there is no GPU body for it, or the driver refuses it.
    pub(super) fn get(
        &self,
        gpu: &Gpu,
        kernel: &dyn Kernel,
        scheme: Option<&str>,
    ) -> Result<Arc<Pipeline>, DeviceError> {
        let module = module_name(kernel, scheme);
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&module) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(make(gpu, kernel, &module)?);
        made.insert(module, pipeline.clone());
        Ok(pipeline)
    }
}

/// Name of the SPIR-V module of a kernel: `<kernel>`, or `<kernel>.<scheme>` where a weight is bound.
pub(super) fn module_name(kernel: &dyn Kernel, scheme: Option<&str>) -> String {
    scheme.map_or_else(|| kernel.name().to_owned(), |scheme| format!("{}.{scheme}", kernel.name()))
}

/// Whether a kernel has a GPU body; without one its decomposition is run.
pub(super) fn has_body(kernel: &dyn Kernel) -> bool {
    let name = kernel.name();
    spirv::ALL
        .iter()
        .any(|(module, _)| module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Storage buffers of a kernel's GPU body: one a binding, three for a weight.
pub(super) fn storage_buffers(kernel: &dyn Kernel) -> u32 {
    kernel.bindings().iter().map(|binding| if binding.element == Element::Weight { 3 } else { 1 }).sum()
}

fn make(gpu: &Gpu, kernel: &dyn Kernel, module: &str) -> Result<Pipeline, DeviceError> {
    const CALL: &str = "making a pipeline";
    let fail = |why: String| gpu.error(CALL, format!("{module}: {why}"));
    let bytes =
        spirv::ALL.iter().find(|(name, _)| *name == module).ok_or_else(|| fail("there is no such GPU body".into()))?.1;
    let words = bytes_to_words(bytes).map_err(|e| fail(e.to_string()))?;
    // SAFETY: the SPIR-V was made by our own compiler run and is validated by the tests.
    let shader = unsafe { ShaderModule::new(gpu.device.clone(), ShaderModuleCreateInfo::new(&words)) }
        .map_err(|e| fail(e.to_string()))?;
    let entry = shader.entry_point("main").ok_or_else(|| fail("no entry point".into()))?;

    let binding = DescriptorSetLayoutBinding {
        stages: ShaderStages::COMPUTE,
        ..DescriptorSetLayoutBinding::descriptor_type(DescriptorType::StorageBuffer)
    };
    let bindings = (0..storage_buffers(kernel)).map(|number| (number, binding.clone())).collect();
    let set_layout = DescriptorSetLayout::new(
        gpu.device.clone(),
        DescriptorSetLayoutCreateInfo { bindings, ..DescriptorSetLayoutCreateInfo::default() },
    )
    .map_err(|e| fail(e.to_string()))?;
    let params = PushConstantRange { stages: ShaderStages::COMPUTE, offset: 0, size: 4 * MAX_PARAMS_WORDS as u32 };
    let layout = PipelineLayout::new(
        gpu.device.clone(),
        PipelineLayoutCreateInfo {
            set_layouts: vec![set_layout.clone()],
            push_constant_ranges: vec![params],
            ..PipelineLayoutCreateInfo::default()
        },
    )
    .map_err(|e| fail(e.to_string()))?;
    let stage = PipelineShaderStageCreateInfo::new(entry);
    let pipeline =
        ComputePipeline::new(gpu.device.clone(), None, ComputePipelineCreateInfo::stage_layout(stage, layout.clone()))
            .map_err(|e| fail(e.to_string()))?;
    Ok(Pipeline { pipeline, layout, set_layout })
}
