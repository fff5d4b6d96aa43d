/**
 * Where a forward pass's time goes: each engine op's share, measured by a decorator around the engine, and what the linear layers
 * reach. `node --cpu-prof bench/run.mjs profile` gives V8's view of the same.
 */
import { parseArgs } from "node:util";
import type { Engine } from "../ts/engine/engine.ts";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { images, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs profile [OPTIONS]

  --size small|base   default base
  --batch N           images in a forward pass; default 1
  --rounds N          measured forward passes; default 10
  --dtype NAME        type of the weights; default float32
  --attention NAME    sdpa (default) or eager
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string", default: "base" },
    batch: { type: "string", default: "1" },
    rounds: { type: "string", default: "10" },
    dtype: { type: "string", default: "float32" },
    attention: { type: "string", default: "sdpa" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** Milliseconds, calls and floating-point operations of each kind of call, and what telling them apart cost. */
class Totals {
  readonly calls = new Map<string, { ms: number; calls: number; flops: number }>();
  overhead_ms = 0;

  add(label: string, ms: number, flops: number): void {
    const total = this.calls.get(label) ?? { ms: 0, calls: 0, flops: 0 };
    this.calls.set(label, { ms: total.ms + ms, calls: total.calls + 1, flops: total.flops + flops });
  }
}

/** The engine with a clock around every op; ops of the CPU engine are done when they return. */
function timed(engine: Engine, totals: Totals): Engine {
  return new Proxy(engine, {
    get(target, name) {
      const member = Reflect.get(target, name, target) as unknown;
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => {
        const start = performance.now();
        const result = (member as (...args: unknown[]) => unknown).apply(target, args);
        const end = performance.now();
        const { label, flops } = describe(target, String(name), args, result);
        totals.add(label, end - start, flops);
        totals.overhead_ms += performance.now() - end;
        return result;
      };
    },
  });
}

/** Linear layers are distinguished by their shapes; attention counts its two products. */
function describe(
  engine: Engine,
  name: string,
  args: unknown[],
  result: unknown,
): { label: string; flops: number } {
  const dims = (handle: unknown) => engine.dims(handle as Parameters<Engine["dims"]>[0]);
  if (name === "linear") {
    const [inputs, outputs] = [dims(args[0]), dims(result)];
    const [k, n] = [inputs.at(-1) as number, outputs.at(-1) as number];
    const fused = `${args[2] === "identity" ? "" : ` + ${args[2]}`}${args[3] === undefined ? "" : " + residual"}`;
    return { label: `linear ${k} → ${n}${fused}`, flops: 2 * product(inputs) * n };
  }
  if (name === "scaled_dot_product_attention" || name === "eager_attention") {
    const [batch, tokens, width] = dims(args[0]) as [number, number, number];
    return { label: name, flops: (4 * batch * tokens * tokens * width) / 3 };
  }
  if (name === "patch_embed")
    return { label: name, flops: 2 * product(dims(args[0])) * (dims(result).at(-1) as number) };
  return { label: name, flops: 0 };
}

function product(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}

function rows_of(totals: Totals, whole_ms: number, rounds: number): Row[] {
  const outside = whole_ms - [...totals.calls.values()].reduce((sum, { ms }) => sum + ms, 0);
  const lines = [...totals.calls].map(([label, { ms, calls, flops }]) => row(label, ms, calls, flops));
  lines.push(row("outside the engine", outside, 0, 0));
  return lines.sort((a, b) => (b["ms a forward"] as number) - (a["ms a forward"] as number));

  function row(label: string, ms: number, calls: number, flops: number): Row {
    return {
      op: label,
      calls: round(calls / rounds),
      "ms a forward": round(ms / rounds, 3),
      "share, %": round((100 * ms) / whole_ms),
      "GFLOP/s": flops > 0 ? String(round(flops / ms / 1e6)) : "",
    };
  }
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const size = options.size as Size;
  const model = await ViTMSNForImageClassification.from_config(SIZES[size], {
    device: "wasm",
    dtype: options.dtype as "float32",
    attn_implementation: options.attention as "sdpa",
  });
  const totals = new Totals();
  const profiled = new ViTMSNForImageClassification(
    model.config,
    timed(model.engine, totals),
    model.weights,
    model,
  );
  const pixel_values = images(Number(options.batch));
  for (let i = 0; i < 3; i++) await profiled.forward({ pixel_values });
  totals.calls.clear();
  totals.overhead_ms = 0;
  const rounds = Number(options.rounds);
  const start = performance.now();
  for (let i = 0; i < rounds; i++) await profiled.forward({ pixel_values });
  const whole_ms = performance.now() - start - totals.overhead_ms;
  await model.dispose();
  const title =
    `A forward of ViT-MSN ${size}, batch ${options.batch}, ${options.dtype}, ${options.attention}: ` +
    `${round(whole_ms / rounds)} ms (mean of ${rounds})`;
  print(title, where, rows_of(totals, whole_ms, rounds), options.json);
}

await main();
