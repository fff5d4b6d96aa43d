import { numel } from "../dims.ts";
import { VitMsnError } from "../errors.ts";
import type { Engine, LinearHandle, TensorHandle } from "./engine.ts";
import type { EngineInfo } from "./engine_info.ts";

/** The machine's peak performance, for comparison. */
export interface Peak {
  /** 10⁹ floating-point operations a second. */
  gflops: number;
  /** 10⁹ bytes a second to and from memory. */
  gigabytes_per_second: number;
}

/** One op of a forward pass. */
export interface ProfiledOp {
  /** Its name, with the sizes of linear layers: "linear 384 → 1536 + gelu". */
  readonly name: string;
  /** Milliseconds from the forward pass's start to its start. */
  readonly start_ms: number;
  /** How long it took; undefined on a GPU without the feature timestamp-query. */
  readonly ms: number | undefined;
  /** Operations of its matrix products, two for a multiply-add; elementwise operations aren't counted. */
  readonly flop: number;
  /** Bytes of its inputs and outputs, each counted once: the least that it must move. */
  readonly bytes: number;
  /** Kernels that a GPU ran for it. */
  readonly dispatches: number;
}

/** The sum over all calls of one op. */
export interface ProfiledTotal extends Omit<ProfiledOp, "start_ms"> {
  readonly calls: number;
}

/** A forward pass, op by op. */
export class Profile {
  /** The device that ran it: the engine's level, or the adapter's name. */
  readonly device: string;
  readonly ops: readonly ProfiledOp[];
  /** Milliseconds from the forward pass's start until its outputs are in JavaScript. */
  readonly wall_ms: number;
  readonly peak: Peak | undefined;

  constructor(device: string, ops: readonly ProfiledOp[], wall_ms: number, peak: Peak | undefined) {
    this.device = device;
    this.ops = ops;
    this.wall_ms = wall_ms;
    this.peak = peak;
  }

  /** The ops by name, the longest first, as a Markdown table; with shares of the roofline if a peak was given. */
  table(): string {
    const rows = this.by_name().map(({ name, calls, ms, flop, bytes, dispatches }) => [
      name,
      String(calls),
      dispatches > 0 ? String(dispatches) : "",
      ms === undefined ? "" : ms.toFixed(3),
      ms === undefined ? "" : ((100 * ms) / this.wall_ms).toFixed(1),
      flop > 0 && ms ? (flop / ms / 1e6).toFixed(1) : "",
      ms ? (bytes / ms / 1e6).toFixed(2) : "",
      flop > 0 ? (flop / bytes).toFixed(1) : "",
      this.#roofline(ms, flop, bytes),
    ]);
    const head = [
      ...["op", "calls", "dispatches", "ms", "% of wall"],
      ...["GFLOP/s", "GB/s", "FLOP/byte", "% of roofline"],
    ];
    const flop = this.ops.reduce((sum, op) => sum + op.flop, 0);
    const bytes = this.ops.reduce((sum, op) => sum + op.bytes, 0);
    const summary =
      `${this.device}: ${this.wall_ms.toFixed(1)} ms, ${(flop / 1e9).toFixed(2)} GFLOP, ` +
      `${(bytes / 1e6).toFixed(1)} MB to move at minimum`;
    return `${summary}\n\n${markdown(head, rows)}`;
  }

  /** The ops with known times as a Chrome trace (JSON), for chrome://tracing or https://ui.perfetto.dev. */
  chrome_trace(): string {
    const timed = this.ops.filter((op) => op.ms !== undefined);
    const traceEvents = timed.map(({ name, start_ms, ms = 0, flop, bytes, dispatches }) => ({
      ...{ name, cat: "op", ph: "X", pid: 1, tid: 1 },
      ...{ ts: 1000 * start_ms, dur: 1000 * ms, args: { flop, bytes, dispatches } },
    }));
    return JSON.stringify({ traceEvents, displayTimeUnit: "ms", otherData: { device: this.device } });
  }

  /** The ops summed by name, the longest first. */
  by_name(): ProfiledTotal[] {
    const totals = new Map<string, ProfiledTotal>();
    for (const { name, ms, flop, bytes, dispatches } of this.ops) {
      const total = totals.get(name);
      totals.set(name, {
        name,
        calls: 1 + (total?.calls ?? 0),
        ms: ms === undefined ? undefined : ms + (total?.ms ?? 0),
        flop: flop + (total?.flop ?? 0),
        bytes: bytes + (total?.bytes ?? 0),
        dispatches: dispatches + (total?.dispatches ?? 0),
      });
    }
    return [...totals.values()].sort((a, b) => (b.ms ?? b.flop) - (a.ms ?? a.flop));
  }

  /** The share of the roofline: the least possible time (the longer of computing and moving) over the actual one. */
  #roofline(ms: number | undefined, flop: number, bytes: number): string {
    if (this.peak === undefined || !ms) return "";
    const { gflops, gigabytes_per_second } = this.peak;
    const least_ms = Math.max(flop / gflops, bytes / gigabytes_per_second) / 1e6;
    return ((100 * least_ms) / ms).toFixed(1);
  }
}

/** Watches a forward pass's ops on any engine. */
export class Profiler {
  /** The engine to run the forward pass on: the one given, with a clock. */
  readonly engine: Engine;
  readonly #target: Engine;
  readonly #weight_bytes: (weights: LinearHandle) => number;
  readonly #ops: ProfiledOp[] = [];
  readonly #start: number;

  /** @throws VitMsnError UNSUPPORTED for an engine in a Worker, whose ops can't be timed from here. */
  static check({ worker }: EngineInfo): void {
    if (!worker) return;
    throw new VitMsnError(
      "UNSUPPORTED",
      "profile() needs the engine in this thread: load the model with worker: false.",
    );
  }

  /** @param weight_bytes the bytes of a linear layer's weight and bias. */
  constructor(engine: Engine, weight_bytes: (weights: LinearHandle) => number) {
    this.#target = engine;
    this.#weight_bytes = weight_bytes;
    this.engine = this.#decorate(engine);
    engine.timing?.start();
    this.#start = performance.now();
  }

  /** Call once the forward pass is done. */
  async finish(device: string, peak: Peak | undefined): Promise<Profile> {
    const wall_ms = performance.now() - this.#start;
    const { timing } = this.#target;
    const ops = timing ? with_times(this.#ops, await timing.stop()) : this.#ops;
    return new Profile(device, ops, wall_ms, peak);
  }

  #decorate(engine: Engine): Engine {
    return new Proxy(engine, {
      get: (target, name) => {
        const member = Reflect.get(target, name, target) as unknown;
        if (typeof member !== "function") return member;
        if (!(name in DESCRIPTIONS)) return member.bind(target);
        const describe = DESCRIPTIONS[name as ProfiledName] as AnyDescribe;
        return (...args: unknown[]) => {
          const [start, before] = [performance.now(), target.timing?.dispatches() ?? 0];
          const result = member.apply(target, args) as unknown;
          const ms = target.timing ? undefined : performance.now() - start;
          const dispatches = (target.timing?.dispatches() ?? 0) - before;
          const described = describe(target, args, result);
          this.#ops.push({ ...this.#sizes(described), start_ms: start - this.#start, ms, dispatches });
          return result;
        };
      },
    });
  }

  #sizes({ name, flop = 0, tensors, weights }: Description): Pick<ProfiledOp, "name" | "flop" | "bytes"> {
    const { timing } = this.#target;
    const bytes_of = (x: TensorHandle) => timing?.bytes(x) ?? 4 * numel(this.#target.dims(x));
    const moved = tensors.reduce((sum, tensor) => sum + bytes_of(tensor), 0);
    return { name, flop, bytes: moved + (weights === undefined ? 0 : this.#weight_bytes(weights)) };
  }
}

/** Gives each op the time of its kernels, which run one after another. */
function with_times(ops: readonly ProfiledOp[], nanoseconds: Float64Array): ProfiledOp[] {
  let [next, start_ms] = [0, 0];
  return ops.map((op) => {
    const own = nanoseconds.subarray(next, next + op.dispatches);
    next += op.dispatches;
    const ms = own.reduce((sum, ns) => sum + ns / 1e6, 0);
    if (own.length === 0 || Number.isNaN(ms)) return op;
    start_ms += ms;
    return { ...op, start_ms: start_ms - ms, ms };
  });
}

/** An op's inputs and outputs, and its matrix products. */
interface Description {
  name: string;
  flop?: number;
  tensors: readonly TensorHandle[];
  weights?: LinearHandle;
}

type Describe<Op extends ProfiledName> = (
  engine: Engine,
  args: Parameters<Engine[Op]>,
  result: ReturnType<Engine[Op]>,
) => Description;

/** How a proxy describes an op. */
type AnyDescribe = (engine: Engine, args: unknown[], result: unknown) => Description;

type ProfiledName =
  | "linear"
  | "patch_embed"
  | "scaled_dot_product_attention"
  | "eager_attention"
  | "layer_norm"
  | "embed_tokens"
  | "take_tokens"
  | "interpolate_positions"
  | "pool";

const DESCRIPTIONS: { readonly [Op in ProfiledName]: Describe<Op> } = {
  linear(engine, args, y) {
    const [x, weights, activation, residual] = args;
    const [inputs, outputs] = [engine.dims(x), engine.dims(y)];
    const [k, n] = [inputs.at(-1) as number, outputs.at(-1) as number];
    const fused = [activation !== "identity" && ` + ${activation}`, residual !== undefined && " + residual"];
    return {
      name: `linear ${k} → ${n}${fused.filter(Boolean).join("")}`,
      flop: 2 * numel(inputs) * n,
      tensors: [x, y, ...(residual === undefined ? [] : [residual])],
      weights,
    };
  },
  patch_embed(engine, [pixels, weights, patch], y) {
    const [channels, outputs] = [engine.dims(pixels)[1] as number, engine.dims(y)];
    const flop = 2 * numel(outputs) * channels * patch.height * patch.width;
    return { name: "patch_embed", flop, tensors: [pixels, y], weights };
  },
  scaled_dot_product_attention(engine, [qkv], context) {
    const flop = attention_flop(engine, qkv);
    return { name: "scaled_dot_product_attention", flop, tensors: [qkv, context] };
  },
  eager_attention(engine, [qkv], { context, probs }) {
    return {
      name: "eager_attention",
      flop: attention_flop(engine, qkv),
      // Probabilities are written, then read again for the context.
      tensors: [qkv, context, probs, probs],
    };
  },
  layer_norm: (_, [x, weight, bias], y) => ({
    name: "layer_norm",
    tensors: [x, weight, bias, y],
  }),
  embed_tokens: (_, [patches, , positions], y) => ({
    name: "embed_tokens",
    tensors: [patches, positions, y],
  }),
  // Only the taken tokens of the input are read.
  take_tokens: (_, _args, y) => ({ name: "take_tokens", tensors: [y, y] }),
  interpolate_positions: (_, [positions], y) => ({
    name: "interpolate_positions",
    tensors: [positions, y],
  }),
  pool: (_, [x, kind], y) => ({
    name: `pool ${kind}`,
    tensors: kind === "cls" ? [y, y] : [x, y],
  }),
};

/** Two products of N×N×D for each image. */
function attention_flop(engine: Engine, qkv: TensorHandle): number {
  const [batch, tokens, width] = engine.dims(qkv) as [number, number, number];
  return (4 * batch * tokens * tokens * width) / 3;
}

function markdown(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const used = head.map((_, column) => column === 0 || rows.some((row) => row[column] !== ""));
  const shown = [head, ...rows].map((row) => row.filter((_, column) => used[column]));
  const widths = (shown[0] as string[]).map((_, i) =>
    Math.max(...shown.map((row) => (row[i] as string).length)),
  );
  const pad = (cell: string, i: number) =>
    i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number);
  const line = (row: readonly string[]) => `| ${row.map(pad).join(" | ")} |`;
  const rule = `|${widths.map((width, i) => "-".repeat(width + (i === 0 ? 2 : 1)) + (i === 0 ? "" : ":")).join("|")}|`;
  return [line(shown[0] as string[]), rule, ...shown.slice(1).map(line)].join("\n");
}
