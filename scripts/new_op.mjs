// npm run new-op -- NAME: adds an op to both backends and to the engine's contract. The result compiles and its tests
// pass; it computes 2 · x until its author changes the arithmetic. docs/design/adding-an-op.md explains each file.
import { existsSync, readFileSync, writeFileSync } from "node:fs";

/** Words that Rust or JavaScript reserves. */
const KEYWORDS = new Set(
  (
    "abstract as async await become box break case catch class const continue crate debugger default delete do dyn " +
    "else enum export extends extern false final finally fn for function gen if impl import in instanceof let loop " +
    "macro match mod move mut new null override priv pub ref return self static struct super switch this throw trait " +
    "true try type typeof unsafe unsized use var virtual void where while with yield"
  ).split(" "),
);

const OPS = "crates/tensor/src/tensor_ops.rs";
const CPU = "crates/cpu/src/backend.rs";
const CPU_MODULES = "crates/cpu/src/lib.rs";
const GPU_OPS = "crates/gpu/src/lib.rs";
const GPU_MODULES = "crates/gpu/src/kernels/mod.rs";
const ENGINE = "ts/engine/engine.ts";
const REMOTE_OPS = "ts/engine/worker/remote_ops.ts";
const TAPE = "ts/training/tape.ts";

/** @param {string} message @returns {never} */
function refuse(message) {
  console.error(message);
  process.exit(1);
}

/** @param {string} path @param {string} text @param {string} anchor @param {string} lines */
function insert_before(path, text, anchor, lines) {
  const at = text.indexOf(anchor);
  if (at < 0) refuse(`${path} has no ${JSON.stringify(anchor)}: adapt scripts/new_op.mjs to the new text.`);
  return text.slice(0, at) + lines + text.slice(at);
}

/**
 * Inserts at the end of the trait or the impl that begins with `head`.
 * @param {string} path @param {string} text @param {string} head @param {string} lines
 */
function insert_into_block(path, text, head, lines) {
  const start = text.indexOf(head);
  if (start < 0) refuse(`${path} has no ${JSON.stringify(head)}: adapt scripts/new_op.mjs to the new text.`);
  return text.slice(0, start) + insert_before(path, text.slice(start), "\n}\n", lines);
}

/**
 * Inserts a line among the statements that begin with `head`, in the order that rustfmt gives them.
 * @param {string} path @param {string} text @param {string} head @param {string} name @param {string} line
 */
function insert_sorted(path, text, head, name, line) {
  const lines = text.split("\n");
  const names = lines.map((other) =>
    other.startsWith(head) ? /^\w+/.exec(other.slice(head.length))?.[0] : "",
  );
  const last = names.findLastIndex(Boolean);
  if (last < 0) refuse(`${path} has no line that begins with "${head}": adapt scripts/new_op.mjs.`);
  const next = names.findIndex((other) => other && other > name);
  // The last one may go over several lines.
  let at = next < 0 ? lines.findIndex((line, i) => i >= last && line.endsWith(";")) + 1 : next;
  // An attribute stays with its line.
  if (lines[at - 1]?.startsWith("#[")) at--;
  return lines.toSpliced(at, 0, line).join("\n");
}

/** @param {string} name @returns {Record<string, string>} */
function created_files(name) {
  return {
    [`crates/cpu/src/${name}.rs`]: cpu_kernel(name),
    [`crates/gpu/src/kernels/${name}.rs`]: gpu_host(name),
    [`crates/gpu/src/kernels/${name}.wgsl`]: gpu_kernel(name),
  };
}

/** @param {string} name @returns {Record<string, (text: string, path: string) => string>} */
function edits(name) {
  return {
    [OPS]: (text, path) =>
      insert_before(
        path,
        text,
        "        }\n    };\n}\n",
        `            /// 2 · x.
            ${name}(x);
`,
      ),
    [CPU]: (text, path) =>
      insert_into_block(
        path,
        text,
        "impl Backend for Cpu {",
        `

    #[inline]
    fn ${name}(&mut self, x: &Tensor) -> Result<Tensor> {
        let mut out = Tensor::zeros(x.dims())?;
        let columns = x.dims().last().copied().unwrap_or(1);
        cpu::${name}(x.data(), columns, out.data_mut())?;
        Ok(out)
    }`,
      ),
    [CPU_MODULES]: (text, path) => {
      const with_module = insert_sorted(path, text, "mod ", name, `mod ${name};`);
      return insert_sorted(path, with_module, "pub use ", name, `pub use ${name}::${name};`);
    },
    [GPU_OPS]: (text, path) =>
      insert_sorted(path, text, "pub use kernels::", name, `pub use kernels::${name}::${name};`),
    [GPU_MODULES]: (text, path) => insert_sorted(path, text, "pub mod ", name, `pub mod ${name};`),
    [ENGINE]: (text, path) =>
      insert_before(
        path,
        text,
        "\n  dims(x: TensorHandle): number[];",
        `  /** 2 · x, of the shape of x. */
  ${name}(x: TensorHandle): TensorHandle;
`,
      ),
    [REMOTE_OPS]: (text, path) =>
      insert_before(path, text, "\n  set_linear: {", `  ${name}: { handles: [0], dims: same },\n`),
    [TAPE]: (text, path) =>
      insert_before(
        path,
        text,
        "  cross_entropy(logits: TensorHandle,",
        `  ${name}(x: TensorHandle): TensorHandle {
    const input = this.#value(x);
    return this.#note(this.#engine.${name}(x), input.wants_gradient, [], (gradient) => {
      // The gradient of 2 · x is 2 · gradient.
      const backward = this.#engine.${name}(gradient);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

`,
      ),
  };
}

/** @param {string} name */
function cpu_kernel(name) {
  return `//! 2 · x, row by row.

use vit_msn_tensor::{Error, Result, check_len};

use crate::runtime::parallel::for_each_block_of_rows;

/// out = 2 · x for each row of \`columns\` values.
///
/// # Errors
/// INVALID_ARGUMENT when lengths don't fit.
pub fn ${name}(x: &[f32], columns: usize, out: &mut [f32]) -> Result<()> {
    if columns == 0 || !x.len().is_multiple_of(columns) {
        return Err(Error::InvalidArgument(format!(
            "${name} got {} values, which isn't a whole number of rows of {columns}.",
            x.len()
        )));
    }
    check_len("The output of ${name}", out.len(), &[x.len()])?;
    // One operation for each value.
    let work = x.len();
    for_each_block_of_rows(out, columns, work, &|first, out| {
        let rows = x[first * columns..].chunks_exact(columns);
        for (row, target) in rows.zip(out.chunks_exact_mut(columns)) {
            for (y, &x) in target.iter_mut().zip(row) {
                *y = 2.0 * x;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, same_with_workers, values};
    use proptest::prelude::*;

    /// The definition, in float64.
    fn naive(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&v| 2.0 * f64::from(v)).collect()
    }

    proptest! {
        #[test]
        fn ${name}_matches_the_definition(rows in 0usize..5, columns in 1usize..130) {
            let x = values(rows * columns, 1);
            let mut out = vec![f32::NAN; x.len()];
            ${name}(&x, columns, &mut out).unwrap();
            assert_close(&out, &naive(&x), 1e-6);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit_of_${name}() {
        let x = values(2_003 * 401, 2);
        same_with_workers(|| {
            let mut out = vec![f32::NAN; x.len()];
            ${name}(&x, 401, &mut out).unwrap();
            out
        });
    }

    #[test]
    fn lengths_that_do_not_fit_${name}_are_errors() {
        for (len, columns, out_len) in [(6, 0, 6), (6, 4, 6), (6, 3, 5)] {
            let error = ${name}(&vec![0.0; len], columns, &mut vec![0.0; out_len]).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARGUMENT");
        }
    }
}
`;
}

/** @param {string} name */
function gpu_host(name) {
  return `//! 2 · x.

use bytemuck::NoUninit;
use vit_msn_tensor::Result;

use super::{LINE, cost, fold_rows};
use crate::buffers::GpuTensor;
use crate::pipelines::Kernel;
use crate::stream::{Op, Stream};

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    count: u32,
}

/// 2 · x, of the shape of x.
///
/// # Errors
/// UNSUPPORTED, OUT_OF_MEMORY, ENGINE_DEAD.
pub fn ${name}(stream: &mut Stream, x: &GpuTensor) -> Result<GpuTensor> {
    let y = stream.uninit(x.dims())?;
    let count = x.len();
    stream.record(Op {
        kernel: Kernel {
            name: "${name}",
            sources: &[include_str!("${name}.wgsl")],
            entry_point: "${name}",
        },
        constants: (&[], &[]),
        uniforms: Params {
            count: count as u32,
        },
        reads: &[x.binding()],
        writes: &[y.binding()],
        workgroups: fold_rows(count.div_ceil(LINE)),
        cost: cost(2 * count as u64, count as u64),
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, on_shapes, random, read};

    #[test]
    fn ${name}_matches_the_definition() {
        on_shapes([1usize..40, 1usize..300], |stream, dims| {
            let (x, x_gpu) = random(stream, &dims, 1);
            let y = ${name}(stream, &x_gpu).unwrap();
            assert_eq!(y.dims(), dims);
            let expected: Vec<f64> = x.iter().map(|&v| 2.0 * f64::from(v)).collect();
            assert_close(&read(stream, &y), &expected, 1e-6);
        });
    }
}
`;
}

/** @param {string} name */
function gpu_kernel(name) {
  return `// ${name}: 2 · x
//
// Layout         x and y [count], float32.
// Preconditions  Workgroups cover count, folded into two dimensions; ${name}.rs makes y of the shape of x.
// Tile           None: every value is read once.

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn ${name}(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if i < params.count {
        y[i] = 2.0 * x[i];
    }
}
`;
}

const [name = "", ...rest] = process.argv.slice(2);
if (!/^[a-z][a-z0-9]*(_[a-z0-9]+)*$/.test(name) || KEYWORDS.has(name) || rest.length > 0)
  refuse(`Usage: npm run new-op -- NAME, with one snake_case name that is no keyword, such as "rms_norm".`);
const changes = Object.entries(edits(name)).map(([path, edit]) => ({
  path,
  edit,
  text: readFileSync(path, "utf8"),
}));
const files = Object.entries(created_files(name));
const training_engine = "ts/engine/training_engine.ts";
for (const { path, text } of [
  ...changes,
  { path: training_engine, text: readFileSync(training_engine, "utf8") },
]) {
  const declares = new RegExp(
    `(\\b(fn|mod) ${name}\\b)|(^ {12}${name}\\()|(^ {2}(readonly )?${name}\\??[(:])`,
    "m",
  );
  if (declares.test(text)) refuse(`${path} already has "${name}": choose another name.`);
}
for (const [path] of files) if (existsSync(path)) refuse(`${path} already exists: choose another name.`);

// All edits are made before anything is written, so a refusal leaves nothing behind.
const edited = changes.map(({ path, edit, text }) => /** @type {const} */ ([path, edit(text, path)]));
for (const [path, text] of [...files, ...edited]) writeFileSync(path, text);
console.log(`Added ${name}, which computes 2 · x:

  created  ${files.map(([path]) => path).join("\n           ")}
  edited   ${edited.map(([path]) => path).join("\n           ")}

Change the arithmetic, the comments and the tests, then:

  npm run format
  npm run test:rust -- ${name}
  ./build.sh engine && ./build.sh engine webgpu

docs/design/adding-an-op.md explains each file.`);
