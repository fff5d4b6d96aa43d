//! What GPUs' compilers make of the kernels, for scripts/machine_code.mjs:
//!
//! `machine_code modules FOLDER` writes every kernel that a forward can use, as WGSL and as the SPIR-V that naga makes
//! of it, and prints their names. `machine_code compile FILE…` compiles SPIR-V by the first Vulkan driver, prints its
//! statistics and writes the assembly next to each file.

mod driver;
mod modules;

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [command, folder] if command == "modules" => modules::write(Path::new(folder)),
        [command, files @ ..] if command == "compile" => driver::compile(files),
        _ => Err("Usage: machine_code modules FOLDER | compile FILE…".into()),
    }
}
