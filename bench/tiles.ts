/**
 * How wide a GEMM's register tile may be: GFLOP/s of bare micro-kernels on packed operands, for each tile of rows ×
 * columns, with multiply and add apart (plain SIMD128) and fused (relaxed SIMD, where this runtime has it).
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
const UNROLLED = 4;
const PANEL = 65536;
const CALLS = 2000;

const { values: options } = parseArgs({
  options: { json: { type: "boolean", default: false }, help: { type: "boolean", default: false } },
});

interface TileKernel extends WebAssembly.Exports {
  run(times: number): number;
}

/** A module whose `run` multiplies a packed block of A (DEPTH × rows) with a panel (DEPTH × columns), many times. */
function tile_source(rows: number, columns: number, is_fused: boolean): string {
  const vectors = columns / 4;
  const lines: string[] = [];
  const each_sum = (make: (row: number, vector: number) => string) => {
    for (let row = 0; row < rows; row++) {
      for (let vector = 0; vector < vectors; vector++) lines.push(make(row, vector));
    }
  };
  for (let step = 0; step < UNROLLED; step++) {
    for (let v = 0; v < vectors; v++) {
      const offset = PANEL + 4 * (step * columns + 4 * v);
      lines.push(`(local.set $b${v} (v128.load offset=${offset} (local.get $panel)))`);
    }
    each_sum((row, v) => {
      const sum = `(local.get $c${row}_${v})`;
      const b = `(local.get $b${v})`;
      const splat = `(v128.load32_splat offset=${4 * (step * rows + row)} (local.get $block))`;
      const a = v === 0 ? `(local.tee $a ${splat})` : "(local.get $a)";
      const value = is_fused
        ? `f32x4.relaxed_madd ${a} ${b} ${sum}`
        : `f32x4.add (f32x4.mul ${a} ${b}) ${sum}`;
      return `(local.set $c${row}_${v} (${value}))`;
    });
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
      (loop $input
        ${lines.join("\n        ")}
        (local.set $block (i32.add (local.get $block) (i32.const ${4 * UNROLLED * rows})))
        (local.set $panel (i32.add (local.get $panel) (i32.const ${4 * UNROLLED * columns})))
        (br_if $input (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
      (br_if $tile (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
    (f32x4.extract_lane 0 ${total})))`;
}

async function gflops(rows: number, columns: number, is_fused: boolean): Promise<number> {
  const { run } = await assemble<TileKernel>(tile_source(rows, columns, is_fused));
  const ms = await repeat(() => run(CALLS), { min_ms: 300, min_rounds: 5 });
  return (2 * rows * columns * DEPTH * CALLS) / ms / 1e6;
}

/** Whether this runtime takes relaxed SIMD. */
function has_relaxed_simd(): Promise<boolean> {
  return assemble(tile_source(1, 4, true)).then(
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
    rows.push({
      tile: `${tile_rows}×${columns}`,
      accumulators: (tile_rows * columns) / 4,
      "mul + add, GFLOP/s": round(await gflops(tile_rows, columns, false)),
      "relaxed madd, GFLOP/s": is_relaxed
        ? String(round(await gflops(tile_rows, columns, true)))
        : "not here",
    });
  }
  print("Micro-kernels of a GEMM, packed operands in L1, one thread", where, rows, options.json);
}

await main();
