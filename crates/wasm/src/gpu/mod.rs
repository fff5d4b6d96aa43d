//! The WebGPU engine and its own exports: opening and closing a device, and asynchronous copies of values.

mod engine;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

use js_sys::{Array, Float32Array, Float64Array, Promise, Uint8Array};
use vit_msn_gpu::{
    AttentionShape, Axis, Context, ContextOptions, ImagePlan, LayerShape, RequestedLimits,
};
pub use vit_msn_gpu::{GpuLinear as LinearWeights, GpuTensor as Tensor, Stream as Device};
use vit_msn_tensor::{Dtype, Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

pub use self::engine::Engine;
use crate::error::{JsResult, to_js};

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
    /// The engine, while a plan takes its place.
    static ASIDE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Runs an op on this instance's engine; `name` is the calling export's.
pub fn with_engine<T>(
    name: &'static str,
    op: impl FnOnce(&mut Engine) -> Result<T>,
) -> JsResult<T> {
    let (mut op, mut result) = (Some(op), Err(not_open()));
    // Through a pointer, so that only this closure is compiled once for each export.
    on_engine(name, &mut |engine| {
        if let Some(op) = op.take() {
            result = op(engine);
        }
    });
    result.map_err(to_js)
}

fn on_engine(name: &'static str, op: &mut dyn FnMut(&mut Engine)) {
    ENGINE.with_borrow_mut(|engine| {
        if let Some(engine) = engine {
            engine.begin_op(name);
            op(engine);
        }
    });
}

fn not_open() -> Error {
    Error::InvalidArgument("This engine has no device yet: call open() first.".to_string())
}

/// Opens the device that TypeScript chose and offers to this instance as its `navigator.gpu`. Whether kernels can use
/// subgroups, and whether the GPU has few registers per invocation, can't be detected here.
#[wasm_bindgen]
pub async fn open(subgroups: bool, few_registers: bool) -> JsResult<()> {
    let options = ContextOptions {
        allow_software: true,
        limits: RequestedLimits::Adapter,
    };
    let mut context = Context::new(options).await.map_err(to_js)?;
    if subgroups {
        context = context.with_subgroups();
    }
    if few_registers {
        context = context.with_few_registers();
    }
    let engine = Engine::new(context).map_err(to_js)?;
    ENGINE.set(Some(engine));
    Ok(())
}

/// Frees every buffer. The device itself belongs to TypeScript.
#[wasm_bindgen]
pub fn close() {
    ENGINE.take();
    ASIDE.take();
}

/// Directs calls to an engine that runs nothing: its ops only request their pipelines from the device.
#[wasm_bindgen]
pub fn begin_plan() -> JsResult<()> {
    let plan = with_engine("begin_plan", |engine| engine.plan())?;
    ASIDE.set(ENGINE.replace(Some(plan)));
    Ok(())
}

/// Directs calls to the engine again and drops the plan's handles.
#[wasm_bindgen]
pub fn end_plan() {
    if let Some(engine) = ASIDE.take() {
        ENGINE.set(Some(engine));
    }
}

/// Room for the pixel values of images.
#[wasm_bindgen]
pub fn pixels(dims: &[u32]) -> JsResult<u32> {
    let dims: Vec<_> = dims.iter().map(|&dim| dim as usize).collect();
    with_engine("pixels", |engine| engine.pixels(&dims))
}

/// Computes the pixel values of an image of `size` (width, height, channels) as image `index` of the batch. The plan
/// consists of the strides of both tables, the length of the first, whether rows come first, left and top, and then the
/// tables.
#[wasm_bindgen]
pub fn preprocess(
    bytes: &Uint8Array,
    size: &[u32],
    plan: &[i32],
    values: &[f32],
    pixels: u32,
    index: usize,
) -> JsResult<()> {
    with_engine("preprocess", |engine| {
        let &[width, height, channels] = size else {
            return Err(no_size());
        };
        let size = [width, height, channels].map(|side| side as usize);
        let image = engine.upload_image(bytes.length() as usize, size, |range| {
            bytes
                .subarray(range.start as u32, range.end as u32)
                .to_vec()
        })?;
        engine.preprocess(&image, image_plan(plan, values)?, pixels, index)
    })
}

/// The same for an rgba8unorm texture of `size` (width, height), which may be destroyed once this returns.
#[wasm_bindgen]
pub fn preprocess_texture(
    texture: JsValue,
    size: &[u32],
    plan: &[i32],
    values: &[f32],
    pixels: u32,
    index: usize,
) -> JsResult<()> {
    with_engine("preprocess_texture", |engine| {
        let &[width, height] = size else {
            return Err(no_size());
        };
        let image = engine.copy_texture(texture, [width, height])?;
        engine.preprocess(&image, image_plan(plan, values)?, pixels, index)
    })
}

fn no_size() -> Error {
    Error::InvalidArgument("An image's size must be its width, height and channels.".to_string())
}

fn image_plan<'a>(plan: &'a [i32], values: &'a [f32]) -> Result<ImagePlan<'a>> {
    let short = || Error::InvalidArgument("The image plan is too short.".to_string());
    let (&[column_stride, row_stride, columns, rows_first, left, top], tables) =
        plan.split_first_chunk().ok_or_else(short)?;
    let (columns, rows) = tables
        .split_at_checked(columns as usize)
        .ok_or_else(short)?;
    let axis = |table, stride| Axis {
        table,
        stride: stride as usize,
    };
    Ok(ImagePlan {
        columns: axis(columns, column_stride),
        rows: axis(rows, row_stride),
        rows_first: rows_first != 0,
        left,
        top,
        values,
    })
}

/// Submits what was recorded to the device.
#[wasm_bindgen]
pub fn submit() -> JsResult<()> {
    with_engine("submit", Engine::submit)
}

/// Resolves once the device has accepted all calls so far; rejects with the error if it refused one.
#[wasm_bindgen(unchecked_return_type = "Promise<void>")]
pub fn settle() -> JsResult<Promise> {
    promise("settle", Engine::settle, |()| Ok(JsValue::UNDEFINED))
}

/// Compiles the pipelines of the self-test.
#[wasm_bindgen]
pub fn plan_self_test() -> JsResult<()> {
    with_engine("plan_self_test", Engine::plan_self_test)
}

/// Disables the variants of kernels that fail on this device; resolves to a sentence about each.
#[wasm_bindgen(unchecked_return_type = "Promise<string[]>")]
pub fn self_test() -> JsResult<Promise> {
    promise("self_test", Engine::self_test, |findings| {
        let sentences = findings
            .iter()
            .map(|sentence| JsValue::from(sentence.as_str()));
        Ok(sentences.collect::<Array>().into())
    })
}

/// Notes that the driver refuses the pipeline with this label.
#[wasm_bindgen]
pub fn refuse_pipeline(label: &str) -> JsResult<()> {
    with_engine("refuse_pipeline", |engine| {
        engine.refuse_pipeline(label);
        Ok(())
    })
}

/// From now on, what is recorded is submitted once it holds this many floating-point operations.
#[wasm_bindgen]
pub fn limit_submissions(flop: f64) -> JsResult<()> {
    with_engine("limit_submissions", |engine| {
        engine.limit_submissions(flop);
        Ok(())
    })
}

/// The work submitted so far, in floating-point operations.
#[wasm_bindgen]
pub fn submitted_work() -> JsResult<f64> {
    with_engine(
        "submitted_work",
        |engine| Ok(engine.submitted_work() as f64),
    )
}

/// The numbers of outputs and inputs of a linear layer.
#[wasm_bindgen]
pub fn linear_sizes(weights: u32) -> JsResult<Vec<u32>> {
    with_engine("linear_sizes", |engine| engine.linear_sizes(weights))
}

/// The storage type of a linear layer's weight.
#[wasm_bindgen]
pub fn linear_dtype(weights: u32) -> JsResult<String> {
    with_engine("linear_dtype", |engine| engine.linear_dtype(weights))
}

/// The ids of the tiles that can compute such a layer, the default one first.
#[wasm_bindgen]
pub fn linear_tiles(
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtype: &str,
) -> JsResult<Vec<String>> {
    with_engine("linear_tiles", |engine| {
        Ok(engine.linear_tiles(shape(rows, inputs, outputs, dtype)?))
    })
}

/// Uses the tile of this id for such layers from now on.
#[wasm_bindgen]
pub fn choose_linear_tile(
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtype: &str,
    id: &str,
) -> JsResult<()> {
    with_engine("choose_linear_tile", |engine| {
        engine.choose_linear_tile(shape(rows, inputs, outputs, dtype)?, id)
    })
}

/// The ids of the tiles that can compute attention of this shape (batch, tokens, heads, channels per head), the default
/// one first.
#[wasm_bindgen]
pub fn attention_tiles(shape: &[u32]) -> JsResult<Vec<String>> {
    with_engine("attention_tiles", |engine| {
        Ok(engine.attention_tiles(attention_shape(shape)?))
    })
}

/// Uses the tile of this id for attention of this shape from now on.
#[wasm_bindgen]
pub fn choose_attention_tile(shape: &[u32], id: &str) -> JsResult<()> {
    with_engine("choose_attention_tile", |engine| {
        engine.choose_attention_tile(attention_shape(shape)?, id)
    })
}

/// Runs attention to time it.
#[wasm_bindgen]
pub fn run_attention(shape: &[u32], times: usize) -> JsResult<()> {
    with_engine("run_attention", |engine| {
        engine.run_attention(attention_shape(shape)?, times)
    })
}

fn attention_shape(shape: &[u32]) -> Result<AttentionShape> {
    let &[batch, tokens, heads, head_dim] = shape else {
        return Err(Error::InvalidArgument(
            "Attention's shape is its batch, tokens, heads and channels per head.".to_string(),
        ));
    };
    Ok(AttentionShape {
        batch: batch as usize,
        tokens: tokens as usize,
        heads: heads as usize,
        head_dim: head_dim as usize,
    })
}

/// Runs a layer to time it.
#[wasm_bindgen]
pub fn run_linear(weights: u32, rows: usize, times: usize) -> JsResult<()> {
    with_engine("run_linear", |engine| {
        engine.run_linear(weights, rows, times)
    })
}

fn shape(rows: usize, inputs: usize, outputs: usize, dtype: &str) -> Result<LayerShape> {
    let dtype = Dtype::from_name(dtype)?;
    Ok(LayerShape {
        rows,
        inputs,
        outputs,
        dtype,
    })
}

/// The bytes of a tensor, whatever form it is stored in.
#[wasm_bindgen]
pub fn tensor_bytes(x: u32) -> JsResult<f64> {
    with_engine("tensor_bytes", |engine| engine.handles.byte_size(x))
}

/// The number of kernels recorded so far.
#[wasm_bindgen]
pub fn dispatches() -> JsResult<f64> {
    with_engine("dispatches", |engine| Ok(engine.dispatches() as f64))
}

/// Starts timing every kernel.
#[wasm_bindgen]
pub fn start_profile() -> JsResult<()> {
    with_engine("start_profile", Engine::start_profile)
}

/// The nanoseconds of each kernel since the start of the profile; NaN if the device has no clock.
#[wasm_bindgen(unchecked_return_type = "Promise<Float64Array>")]
pub fn finish_profile() -> JsResult<Promise> {
    promise("finish_profile", Engine::finish_profile, |times| {
        Ok(Float64Array::from(&*times).into())
    })
}

/// The bytes that the device has reserved for this engine's tensors.
#[wasm_bindgen]
pub fn reserved() -> JsResult<f64> {
    with_engine("reserved", |engine| Ok(engine.reserved() as f64))
}

/// A copy of a tensor's values.
#[wasm_bindgen(unchecked_return_type = "Promise<Float32Array>")]
pub fn read(x: u32) -> JsResult<Promise> {
    promise(
        "read",
        |engine| engine.read(x).map(submitted),
        |values| Ok(Float32Array::from(&*values).into()),
    )
}

/// A parameter's values as raw little-endian values of `dtype`.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn parameter_bytes(parameter: u32, dtype: &str) -> JsResult<Promise> {
    let dtype = Dtype::from_name(dtype).map_err(to_js)?;
    promise(
        "parameter_bytes",
        |engine| engine.read(parameter).map(submitted),
        move |values| bytes(&dtype.encode(&values)?),
    )
}

/// Rows of a weight as raw values of its storage type.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_rows(weights: u32, row: usize, rows: usize) -> JsResult<Promise> {
    promise(
        "get_rows",
        |engine| engine.get_rows(weights, row, rows),
        |rows| bytes(&rows),
    )
}

/// The float32 scales of int8 rows.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_scales(weights: u32, row: usize, rows: usize) -> JsResult<Promise> {
    promise(
        "get_scales",
        |engine| engine.get_scales(weights, row, rows),
        |scales| bytes(&scales),
    )
}

/// Bias elements as raw values of the storage type, float32 for int8 weights.
#[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
pub fn get_bias(weights: u32, offset: usize, count: usize) -> JsResult<Promise> {
    promise(
        "get_bias",
        |engine| engine.get_bias(weights, offset, count),
        |bias| bytes(&bias),
    )
}

/// Submits on the first poll, which happens once the calling JavaScript has returned. Reads requested together, and the
/// ops before them, are therefore one command buffer.
async fn submitted<T>(pending: impl Future<Output = Result<T>>) -> Result<T> {
    ENGINE.with_borrow_mut(|engine| engine.as_mut().map_or(Ok(()), Engine::submit))?;
    pending.await
}

/// Starts a copy immediately, so that its source may be freed at once, and returns a promise of the result.
fn promise<T, F>(
    name: &'static str,
    start: impl FnOnce(&mut Engine) -> Result<F>,
    to_value: impl FnOnce(T) -> Result<JsValue> + 'static,
) -> JsResult<Promise>
where
    F: Future<Output = Result<T>> + 'static,
{
    let pending = with_engine(name, start)?;
    // Boxed, so that the promise's code is compiled once.
    let value: Pin<Box<dyn Future<Output = JsResult<JsValue>>>> =
        Box::pin(async move { pending.await.and_then(to_value).map_err(to_js) });
    Ok(future_to_promise(value))
}

fn bytes(values: &[u8]) -> Result<JsValue> {
    Ok(Uint8Array::from(values).into())
}
