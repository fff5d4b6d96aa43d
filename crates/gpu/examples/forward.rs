//! Shows where the time of a ViT-MSN forward goes on this machine's GPU: each kind of op with its time, work and
//! memory traffic.
//!
//! `cargo run --release -p vit-msn-gpu --example forward -- [small|base] [batch] [float32|float16|bfloat16|int8]
//! [image]`
//! Weights are random. Software adapters are accepted: their times say little, but the counts are the same
//! everywhere.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use vit_msn_gpu::{
    Context, ContextOptions, GpuLinear, GpuTensor, OpProfile, Pooling, RequestedLimits, Stored,
    Stream, embed_tokens, layer_norm, layer_norm_for, linear, linear_for, patch_embed, pool,
    scaled_dot_product_attention_for,
};
use vit_msn_tensor::{Activation, Dtype, Error, Result};

const PATCH: usize = 16;
const CLASSES: usize = 1000;

struct Size {
    width: usize,
    layers: usize,
    heads: usize,
}

struct Layer {
    qkv: GpuLinear,
    output: GpuLinear,
    up: GpuLinear,
    down: GpuLinear,
}

struct Model {
    size: Size,
    patches: GpuLinear,
    cls: GpuTensor,
    positions: GpuTensor,
    ones: GpuTensor,
    layers: Vec<Layer>,
    classifier: GpuLinear,
}

fn random(count: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| scale * next()).collect()
}

fn layer(stream: &mut Stream, outputs: usize, inputs: usize, dtype: Dtype) -> Result<GpuLinear> {
    let mut layer = GpuLinear::new(stream, outputs, inputs, dtype, true)?;
    let weight = random(outputs * inputs, 0.05);
    layer.set_rows(stream, 0, Dtype::F32, &Dtype::F32.encode(&weight)?)?;
    layer.set_bias(stream, 0, Dtype::F32, &vec![0; 4 * outputs])?;
    Ok(layer)
}

/// A layer's result in the format that every op reads.
fn linear_of(
    stream: &mut Stream,
    x: &Stored,
    layer: &GpuLinear,
    residual: Option<&GpuTensor>,
) -> Result<GpuTensor> {
    match linear_for(
        stream,
        x.into(),
        layer,
        Activation::Identity,
        residual,
        None,
    )? {
        Stored::Wide(y) => Ok(y),
        Stored::Halves(_) => unreachable!("no layer was named as its reader"),
    }
}

impl Model {
    fn new(stream: &mut Stream, size: Size, image: usize, dtype: Dtype) -> Result<Self> {
        let width = size.width;
        let tokens = 1 + (image / PATCH) * (image / PATCH);
        let around = if dtype == Dtype::I8 {
            Dtype::F32
        } else {
            dtype
        };
        let layers = (0..size.layers)
            .map(|_| {
                Ok(Layer {
                    qkv: layer(stream, 3 * width, width, dtype)?,
                    output: layer(stream, width, width, dtype)?,
                    up: layer(stream, 4 * width, width, dtype)?,
                    down: layer(stream, width, 4 * width, dtype)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            patches: layer(stream, width, 3 * PATCH * PATCH, around)?,
            cls: stream.upload(&random(width, 1.0), &[width])?,
            positions: stream.upload(&random(tokens * width, 1.0), &[tokens, width])?,
            ones: stream.upload(&vec![1.0; width], &[width])?,
            classifier: layer(stream, CLASSES, width, around)?,
            layers,
            size,
        })
    }

    fn forward(&self, stream: &mut Stream, pixels: &GpuTensor) -> Result<GpuTensor> {
        use Activation::{Gelu, Identity};
        let norm = |stream: &mut Stream, x: &GpuTensor, reader: &GpuLinear| {
            layer_norm_for(stream, x, &self.ones, &self.ones, 1e-6, Some(reader))
        };
        let patches = patch_embed(stream, pixels, &self.patches, (PATCH, PATCH))?;
        let mut x = embed_tokens(stream, &patches, &self.cls, &self.positions, None)?;
        drop(patches);
        for layer in &self.layers {
            let normed = norm(stream, &x, &layer.qkv)?;
            let qkv = linear_of(stream, &normed, &layer.qkv, None)?;
            drop(normed);
            let context = scaled_dot_product_attention_for(
                stream,
                &qkv,
                self.size.heads,
                Some(&layer.output),
            )?;
            drop(qkv);
            x = linear_of(stream, &context, &layer.output, Some(&x))?;
            drop(context);
            let normed = norm(stream, &x, &layer.up)?;
            let reader = Some(&layer.down);
            let hidden = linear_for(stream, (&normed).into(), &layer.up, Gelu, None, reader)?;
            drop(normed);
            x = linear_of(stream, &hidden, &layer.down, Some(&x))?;
        }
        let x = layer_norm(stream, &x, &self.ones, &self.ones, 1e-6)?;
        let cls = pool(stream, &x, Pooling::Cls)?;
        linear(stream, &cls, &self.classifier, Identity, None)
    }
}

/// Totals over ops of one kind.
#[derive(Default)]
struct Row {
    calls: u64,
    nanoseconds: f64,
    flop: u64,
    bytes: u64,
    min_bytes: u64,
}

impl Row {
    fn add(&mut self, op: &OpProfile) {
        self.calls += 1;
        self.nanoseconds += op.nanoseconds.unwrap_or(f64::NAN);
        self.flop += op.flop;
        self.bytes += op.bytes;
        self.min_bytes += op.min_bytes;
    }

    fn print(&self, name: &str) {
        println!(
            "| {name} | {} | {:.2} | {:.1} | {:.2} | {:.1} | {:.1} | {:.1} |",
            self.calls,
            self.nanoseconds / 1e6,
            self.flop as f64 / self.nanoseconds,
            self.flop as f64 / 1e9,
            self.bytes as f64 / 1e6,
            self.min_bytes as f64 / 1e6,
            self.flop as f64 / self.bytes as f64,
        );
    }
}

fn print_table(profile: &[OpProfile]) {
    println!("| op | calls | ms | GFLOP/s | GFLOP | MB moved | MB at least | FLOP/byte moved |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut total = Row::default();
    for op in profile {
        let name = match op.name {
            "linear" => format!("linear, {:.0} MFLOP", op.flop as f64 / 1e6),
            name => name.to_string(),
        };
        rows.entry(name).or_default().add(op);
        total.add(op);
    }
    for (name, row) in &rows {
        row.print(name);
    }
    total.print("all");
}

fn size_of(name: &str) -> Result<Size> {
    let (width, heads) = match name {
        "small" => (384, 6),
        "base" => (768, 12),
        _ => {
            return Err(Error::InvalidArgument(format!(
                "Unknown size {name:?}: use small or base."
            )));
        }
    };
    Ok(Size {
        width,
        layers: 12,
        heads,
    })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| {
        let given = arguments.get(index).map_or(default, String::as_str);
        given.to_string()
    };
    let number = |index: usize, default: &str| {
        argument(index, default)
            .parse::<usize>()
            .map_err(|error| Error::InvalidArgument(error.to_string()))
    };
    let (batch, image) = (number(1, "1")?, number(3, "224")?);
    let dtype = Dtype::from_name(&argument(2, "float32"))?;
    let context = pollster::block_on(Context::new(ContextOptions {
        allow_software: true,
        limits: RequestedLimits::Adapter,
    }))?;
    println!(
        "{} ({:?})",
        context.adapter().name,
        context.adapter().backend
    );
    let mut stream = Stream::new(Rc::new(context))?;
    let model = Model::new(&mut stream, size_of(&argument(0, "small"))?, image, dtype)?;
    let pixels = random(batch * 3 * image * image, 1.0);
    let pixels = stream.upload(&pixels, &[batch, 3, image, image])?;
    let run = |stream: &mut Stream| {
        let start = Instant::now();
        let logits = model.forward(stream, &pixels)?;
        pollster::block_on(stream.read(&logits)?)?;
        Ok::<_, Error>(start.elapsed())
    };
    println!(
        "first forward {:.0} ms",
        run(&mut stream)?.as_secs_f64() * 1e3
    );
    let dispatches = stream.dispatches();
    let best = (0..3)
        .map(|_| run(&mut stream))
        .collect::<Result<Vec<_>>>()?;
    let best = best.into_iter().min().unwrap_or_default();
    println!(
        "best of 3 {:.1} ms, {dispatches} dispatches",
        best.as_secs_f64() * 1e3
    );
    println!("memory {:?}", stream.memory());
    stream.start_profile()?;
    run(&mut stream)?;
    print_table(&pollster::block_on(stream.finish_profile()?)?);
    Ok(())
}
