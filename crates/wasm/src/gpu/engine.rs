//! The engine on handles: it looks them up, records the kernel and stores its result.

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use vit_msn_gpu as gpu;
use vit_msn_gpu::{AttentionShape, Context, GpuImage, ImagePlan, LayerShape, Stream};
#[cfg(not(target_arch = "wasm32"))]
use vit_msn_tensor::Error;
use vit_msn_tensor::{Result, check_len};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen::JsCast;
use wasm_bindgen::JsValue;

use crate::handles::Handles;

/// Everything that one WebAssembly instance holds on its device.
pub struct Engine {
    pub backend: Stream,
    /// The live objects.
    pub handles: Handles,
}

impl Engine {
    /// An engine on an open device.
    pub fn new(context: Context) -> Result<Self> {
        Ok(Self {
            backend: Stream::new(Rc::new(context))?,
            handles: Handles::default(),
        })
    }

    /// An engine that runs nothing: its ops only request their pipelines from the device.
    pub fn plan(&self) -> Result<Self> {
        Ok(Self {
            backend: Stream::planning(Rc::clone(self.backend.context()))?,
            handles: Handles::default(),
        })
    }

    /// Sets the name of the op that the following calls belong to.
    pub fn begin_op(&self, name: &'static str) {
        self.backend.context().begin_op(name);
    }

    /// Room for the pixel values of images.
    pub fn pixels(&mut self, dims: &[usize]) -> Result<u32> {
        let pixels = gpu::empty_pixels(&mut self.backend, dims)?;
        self.handles.add_tensor(pixels)
    }

    /// Uploads an image in pieces, so that this instance's memory doesn't grow by all of its bytes.
    pub fn upload_image(
        &mut self,
        length: usize,
        size: [usize; 3],
        bytes: impl Fn(Range<usize>) -> Vec<u8>,
    ) -> Result<GpuImage> {
        const STRETCH: usize = 1 << 20;
        check_len("The image", length, &size)?;
        let image = GpuImage::new(&self.backend, size)?;
        for start in (0..length).step_by(STRETCH) {
            let stretch = bytes(start..length.min(start + STRETCH));
            image.write(&mut self.backend, start, &stretch)?;
        }
        Ok(image)
    }

    /// An image from a page's texture.
    #[cfg(target_arch = "wasm32")]
    pub fn copy_texture(&mut self, texture: JsValue, size: [u32; 2]) -> Result<GpuImage> {
        GpuImage::from_page(&mut self.backend, texture.unchecked_into(), size)
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub fn copy_texture(&mut self, _: JsValue, _: [u32; 2]) -> Result<GpuImage> {
        Err(Error::Unsupported(
            "Textures of a page exist in browsers only: pass bytes instead.".to_string(),
        ))
    }

    /// Computes the pixel values of image `index` of the batch.
    pub fn preprocess(
        &mut self,
        image: &GpuImage,
        plan: ImagePlan<'_>,
        pixels: u32,
        index: usize,
    ) -> Result<()> {
        let pixels = self.handles.tensor(pixels)?;
        gpu::preprocess(&mut self.backend, image, &plan, pixels, index)
    }

    /// Submits what was recorded to the device.
    pub fn submit(&mut self) -> Result<()> {
        self.backend.submit()
    }

    /// Waits until the device has checked all calls so far; returns the first error.
    pub fn settle(&mut self) -> Result<impl Future<Output = Result<()>> + use<>> {
        Ok(self.backend.settle())
    }

    /// Compiles the pipelines of the self-test.
    pub fn plan_self_test(&mut self) -> Result<()> {
        gpu::plan_self_test(&mut self.backend)
    }

    /// Disables the variants of kernels that fail on this device; resolves to a sentence about each.
    pub fn self_test(&mut self) -> Result<impl Future<Output = Result<Vec<String>>> + use<>> {
        gpu::self_test(&mut self.backend)
    }

    /// The driver refuses the pipeline with this label.
    pub fn refuse_pipeline(&self, label: &str) {
        self.backend.context().refuse(label);
    }

    /// Limits the floating-point operations of one submission.
    pub fn limit_submissions(&mut self, flop: f64) {
        self.backend.limit_submissions(flop as u64);
    }

    /// The work submitted so far, in floating-point operations.
    pub fn submitted_work(&self) -> u64 {
        self.backend.submitted_work()
    }

    /// The number of kernels recorded so far.
    pub fn dispatches(&self) -> u64 {
        self.backend.dispatches()
    }

    /// Starts timing every kernel.
    pub fn start_profile(&mut self) -> Result<()> {
        self.backend.start_profile()
    }

    /// The nanoseconds of each kernel since the start of the profile; NaN if the device has no clock.
    pub fn finish_profile(&mut self) -> Result<impl Future<Output = Result<Vec<f64>>> + use<>> {
        let pending = self.backend.finish_profile()?;
        Ok(async move {
            let ops = pending.await?;
            Ok(ops
                .iter()
                .map(|op| op.nanoseconds.unwrap_or(f64::NAN))
                .collect())
        })
    }

    /// The numbers of outputs and inputs of a linear layer.
    pub fn linear_sizes(&self, weights: u32) -> Result<Vec<u32>> {
        let weights = self.handles.linear(weights)?;
        let sizes = [weights.out_features(), weights.in_features()];
        Ok(sizes.map(|size| size as u32).to_vec())
    }

    /// The storage type of a linear layer's weight.
    pub fn linear_dtype(&self, weights: u32) -> Result<String> {
        Ok(self.handles.linear(weights)?.dtype().name().to_string())
    }

    /// The ids of the tiles that can compute a layer, the default one first.
    pub fn linear_tiles(&self, shape: LayerShape) -> Vec<String> {
        let ids = gpu::linear_tiles(&self.backend, shape);
        ids.into_iter().map(str::to_string).collect()
    }

    /// Uses this tile for layers of this shape from now on.
    pub fn choose_linear_tile(&mut self, shape: LayerShape, id: &str) -> Result<()> {
        gpu::choose_linear_tile(&mut self.backend, shape, id)
    }

    /// The ids of the tiles that can compute attention, the default one first.
    pub fn attention_tiles(&self, shape: AttentionShape) -> Vec<String> {
        let ids = gpu::attention_tiles(&self.backend, &shape);
        ids.into_iter().map(str::to_string).collect()
    }

    /// Uses this tile for attention of this shape from now on.
    pub fn choose_attention_tile(&mut self, shape: AttentionShape, id: &str) -> Result<()> {
        gpu::choose_attention_tile(&mut self.backend, shape, id)
    }

    /// Runs attention to time it.
    pub fn run_attention(&mut self, shape: AttentionShape, times: usize) -> Result<()> {
        gpu::run_attention(&mut self.backend, &shape, times)
    }

    /// Runs a layer to time it.
    pub fn run_linear(&mut self, weights: u32, rows: usize, times: usize) -> Result<()> {
        let weights = self.handles.linear(weights)?;
        gpu::run_linear(&mut self.backend, weights, rows, times)
    }

    /// The bytes of device memory that are in use or pooled for later tensors.
    pub fn reserved(&self) -> u64 {
        self.backend.memory().reserved
    }

    /// A copy of a tensor's values, recorded by the time this returns. Submit before awaiting it.
    pub fn read(&mut self, x: u32) -> Result<impl Future<Output = Result<Vec<f32>>> + use<>> {
        let x = self.handles.tensor(x)?;
        self.backend.record_read(x)
    }

    /// Rows of a weight as raw values of its storage type.
    pub fn get_rows(
        &mut self,
        weights: u32,
        row: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_rows(&mut self.backend, row, rows)
    }

    /// The float32 scales of int8 rows.
    pub fn get_scales(
        &mut self,
        weights: u32,
        row: usize,
        rows: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_scales(&mut self.backend, row, rows)
    }

    /// Bias elements as raw values of the storage type.
    pub fn get_bias(
        &mut self,
        weights: u32,
        offset: usize,
        count: usize,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        let weights = self.handles.linear(weights)?;
        weights.get_bias(&mut self.backend, offset, count)
    }
}
