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

use vit_msn_gpu::{Context, ContextOptions, OpProfile, RequestedLimits, Stream};
use vit_msn_tensor::{Dtype, Error, Result};

use self::model::{Model, Size, random};

#[path = "support/model.rs"]
mod model;

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
        patch: 16,
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
