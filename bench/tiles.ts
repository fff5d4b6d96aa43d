/**
 * How wide a GEMM's register tile may be: GFLOP/s of bare micro-kernels on packed operands, for each tile of rows ×
 * columns, with multiply and add apart (plain SIMD128) and fused (relaxed SIMD, where this runtime has it).
 *
 * V8 moves the loads and products of a basic block to its beginning, and spills what doesn't fit its registers. So a
 * kernel's loop is cut into blocks, by exits that are never taken: after each input, or after each row of an input.
 */
import { parseArgs } from "node:util";
import { machine, print, type Row, round } from "./support/report.ts";
import { repeat } from "./support/timing.ts";
import { assemble } from "./support/wat.ts";

const HELP = `Usage: node bench/run.mjs tiles [--json]

Node 20 has relaxed SIMD behind --experimental-wasm-relaxed-simd, newer ones have it on.`;

const TILES = [
  [2, 8],
  [4, 8],
  [5, 8],
  [6, 8],
  [8, 8],
  [2, 12],
  [3, 12],
  [4, 12],
  [1, 16],
  [2, 16],
  [3, 16],
] as const;

/** Inputs of a tile: a panel of 384 × 16 floats fits the L1 cache. */
const DEPTH = 384;
/** Inputs in an iteration of the loop. */
const UNROLLED = 4;
const PANEL = 65536;
const CALLS = 2000;

const { values: options } = parseArgs({
  options: { json: { type: "boolean", default: false }, help: { type: "boolean", default: false } },
});

interface TileKernel extends WebAssembly.Exports {
  run(times: number): number;
}

/** A variant of a micro-kernel: how it multiplies and adds, and where its basic blocks end. */
interface Variant {
  is_fused: boolean;
  cut: "input" | "row";
}

/** A module whose `run` multiplies a packed block of A (DEPTH × rows) with a panel (DEPTH × columns), many times. */
function tile_source(rows: number, columns: number, { is_fused, cut }: Variant): string {
  const vectors = columns / 4;
  const lines: string[] = [];
  for (let step = 0; step < UNROLLED; step++) {
    for (let v = 0; v < vectors; v++) {
      const offset = PANEL + 4 * (step * columns + 4 * v);
      lines.push(`(local.set $b${v} (v128.load offset=${offset} (local.get $panel)))`);
    }
    for (let row = 0; row < rows; row++) {
      const splat = `(v128.load32_splat offset=${4 * (step * rows + row)} (local.get $block))`;
      lines.push(`(local.set $a ${splat})`);
      for (let v = 0; v < vectors; v++) {
        const [sum, b] = [`$c${row}_${v}`, `(local.get $b${v})`];
        const value = is_fused
          ? `f32x4.relaxed_madd (local.get $a) ${b} (local.get ${sum})`
          : `f32x4.add (f32x4.mul (local.get $a) ${b}) (local.get ${sum})`;
        lines.push(`(local.set ${sum} (${value}))`);
      }
      // Each exit has a separate condition, or they would be merged; none is ever met.
      const exit = `(br_if $done (i32.eq (local.get $left) (i32.const ${-1 - step * rows - row})))`;
      if (cut === "row" || row === rows - 1) lines.push(exit);
    }
  }
  const sums = Array.from(
    { length: rows * vectors },
    (_, i) => `$c${Math.floor(i / vectors)}_${i % vectors}`,
  );
  const total = sums.reduce(
    (text, name) => `(f32x4.add ${text} (local.get ${name}))`,
    "(v128.const i32x4 0 0 0 0)",
  );
  return `(module (memory 2) (func (export "run") (param $times i32) (result f32)
    (local $block i32) (local $panel i32) (local $left i32) (local $a v128)
    ${Array.from({ length: vectors }, (_, v) => `(local $b${v} v128)`).join(" ")}
    ${sums.map((name) => `(local ${name} v128)`).join(" ")}
    (loop $tile
      (local.set $block (i32.const 0)) (local.set $panel (i32.const 0)) (local.set $left (i32.const ${DEPTH / UNROLLED}))
      (block $done (loop $input
        ${lines.join("\n        ")}
        (local.set $block (i32.add (local.get $block) (i32.const ${4 * UNROLLED * rows})))
        (local.set $panel (i32.add (local.get $panel) (i32.const ${4 * UNROLLED * columns})))
        (br_if $input (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))
      (br_if $tile (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
    (f32x4.extract_lane 0 ${total})))`;
}

async function gflops(rows: number, columns: number, variant: Variant): Promise<number> {
  const { run } = await assemble<TileKernel>(tile_source(rows, columns, variant));
  const ms = await repeat(() => run(CALLS), { min_ms: 600, min_rounds: 5 });
  return (2 * rows * columns * DEPTH * CALLS) / ms / 1e6;
}

/** Whether this runtime takes relaxed SIMD. */
function has_relaxed_simd(): Promise<boolean> {
  return assemble(tile_source(1, 4, { is_fused: true, cut: "input" })).then(
    () => true,
    () => false,
  );
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const is_relaxed = await has_relaxed_simd();
  const rows: Row[] = [];
  for (const [tile_rows, columns] of TILES) {
    const row: Record<string, string | number> = { tile: `${tile_rows}×${columns}` };
    for (const is_fused of is_relaxed ? [false, true] : [false]) {
      for (const cut of ["input", "row"] as const) {
        const name = `${is_fused ? "relaxed madd" : "mul + add"}, cut by ${cut}`;
        row[name] = round(await gflops(tile_rows, columns, { is_fused, cut }));
      }
    }
    rows.push(row);
  }
  print("Micro-kernels of a GEMM, packed operands in L1, one thread; GFLOP/s", where, rows, options.json);
}

await main();
