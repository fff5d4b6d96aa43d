import { numel } from "../../dims.ts";
import type { WeightDtype } from "../../dtypes.ts";
import { on_demand } from "../../on_demand.ts";
import type {
  DrawnImage,
  ImageBytes,
  ImageEngine,
  ImagePlan,
  LayerShape,
  TensorHandle,
  TiledEngine,
  Timing,
} from "../engine.ts";
import { engine_not_started } from "../engine_errors.ts";
import { next_task } from "../pacer.ts";
import type { Glue } from "../wasm/glue_ops.ts";
import { WasmEngine } from "../wasm/wasm_engine.ts";
import { Nudger, SubmissionClock, SubmissionLimit } from "./submissions.ts";
import { shape_key, TileCache } from "./tile_cache.ts";
import { has_few_registers, type OpenedDevice } from "./webgpu_device.ts";
import { CompiledAhead, scope_of } from "./webgpu_scope.ts";

type GpuGlue = ReturnType<typeof import("../generated/webgpu/glue.js").default>;

/**
 * Starts a new WebAssembly instance on a device.
 * @param cache_dir the folder that caches earlier choices of tiles; default env.cache_dir.
 * @throws VitMsnError UNSUPPORTED, OUT_OF_MEMORY or IO.
 */
export async function create_webgpu_engine(
  module: WebAssembly.Module,
  opened: OpenedDevice,
  cache_dir: string | undefined,
): Promise<WebGpuEngine> {
  const { default: create_glue, BINARY } = await on_demand(
    "WebGPU engine (vit_msn_webgpu.js)",
    () => import("../generated/webgpu/glue.js"),
  );
  const ahead = new CompiledAhead();
  const glue = create_glue(scope_of(opened, ahead));
  let memory: WebAssembly.Memory;
  try {
    memory = glue.initSync({ module }).memory;
  } catch (cause) {
    throw engine_not_started(cause);
  }
  const tile_cache = new TileCache(opened.adapter, BINARY, cache_dir);
  const engine = new WebGpuEngine(glue, module, memory, opened, ahead, tile_cache);
  await engine.open();
  return engine;
}

/** The WebGPU engine: ops are recorded in WebAssembly, and run once something is read. */
export class WebGpuEngine extends WasmEngine {
  #glue: GpuGlue | undefined;
  readonly #opened: OpenedDevice;
  /** What the self-test found, one sentence for each variant of kernels that isn't used because of it. */
  readonly findings: string[] = [];
  readonly #ahead: CompiledAhead;
  readonly #tile_cache: TileCache;
  /** Whether ops only request their pipelines: see compile_ahead. */
  #plans = false;
  readonly #limit: SubmissionLimit;
  readonly #clock: SubmissionClock;
  readonly #nudger: Nudger;
  /** Shared with the device, so that it doesn't reference the engine. */
  readonly #end = { is_disposed: false };

  constructor(
    glue: GpuGlue,
    module: WebAssembly.Module,
    memory: WebAssembly.Memory,
    opened: OpenedDevice,
    ahead: CompiledAhead,
    tile_cache: TileCache,
  ) {
    // Exports that only the CPU's binary has are called on the CPU only.
    super(glue as unknown as Glue, module, memory, "webgpu");
    this.#glue = glue;
    this.#opened = opened;
    this.#ahead = ahead;
    this.#tile_cache = tile_cache;
    const limit = SubmissionLimit.of(opened.adapter);
    this.#limit = limit;
    this.#clock = new SubmissionClock(limit);
    this.#nudger = new Nudger(opened.device.queue);
    const { fate } = this;
    const end = this.#end;
    void opened.device.lost.then(({ reason, message }) => {
      if (!end.is_disposed) limit.device_lost();
      fate.lost ??= `The GPU device of this model was lost (${reason}: ${message.trim()}).`;
    });
  }

  /** Whether its device was lost, with everything on it. */
  get is_lost(): boolean {
    return this.fate.lost !== undefined;
  }

  get max_tensor_bytes(): number {
    return this.#opened.device.limits.maxStorageBufferBindingSize;
  }

  get work_limit(): number {
    return this.#limit.work;
  }

  /** A running forward pass requests its pipelines one after another; here all of them compile at the same time. */
  async compile_ahead(forward: () => Promise<unknown>): Promise<{ compiled: Promise<void> }> {
    this.call(() => this.#glue?.begin_plan());
    this.#plans = true;
    this.#ahead.begin();
    try {
      await forward();
    } catch {
      // A forward pass that fails here reports its error when it is really called.
    }
    const ended = this.#ahead.end();
    this.#plans = false;
    this.call(() => this.#glue?.end_plan());
    const compiled = ended.then((refused) => {
      for (const label of refused) this.#glue?.refuse_pipeline(label);
    });
    return { compiled };
  }

  override async read(x: TensorHandle): Promise<Float32Array> {
    if (this.#plans) return new Float32Array(numel(this.dims(x)));
    const reading = super.read(x);
    // The read is submitted in a microtask, together with others.
    queueMicrotask(() => this.#time(reading).catch(() => {}));
    return reading;
  }

  /** Times what was submitted since the last call, and limits further submissions accordingly. */
  async #time(finished: Promise<unknown>): Promise<void> {
    const submitted = this.#glue?.submitted_work() ?? 0;
    if (this.#clock.is_idle(submitted)) return;
    await this.#clock.time(submitted, finished);
    if (this.#glue !== undefined && this.death() === undefined) this.#limit_submissions();
  }

  #limit_submissions(): void {
    this.call(() => this.#glue?.limit_submissions(this.#limit.work));
  }

  /** The image processor's kernels. */
  get images(): ImageEngine {
    const { limits } = this.#opened.device;
    return {
      max_side: limits.maxTextureDimension2D,
      max_bytes: limits.maxStorageBufferBindingSize,
      pixels: (dims) =>
        this.call(() => (this.#glue as GpuGlue).pixels(Uint32Array.from(dims))) as TensorHandle,
      put: (image, plan, pixels, index) => this.#put(image, plan, pixels, index),
    };
  }

  #put(image: ImageBytes | DrawnImage, plan: ImagePlan, pixels: TensorHandle, index: number): void {
    const glue = this.#glue as GpuGlue;
    const { width, height } = image;
    const numbers = pack_plan(plan);
    if ("data" in image) {
      const { data, channels } = image;
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      const size = Uint32Array.of(width, height, channels);
      this.call(() => glue.preprocess(bytes, size, numbers, plan.values, pixels, index));
      this.#submit_large(bytes.length);
      return;
    }
    const { device } = this.#opened;
    const texture = device.createTexture({ size: [width, height], format: "rgba8unorm", usage: DRAWN });
    try {
      const { source } = image;
      device.queue.copyExternalImageToTexture({ source }, { texture, premultipliedAlpha: false }, [
        width,
        height,
      ]);
      const size = Uint32Array.of(width, height);
      this.call(() => glue.preprocess_texture(texture, size, numbers, plan.values, pixels, index));
      this.#submit_large(4 * width * height);
    } finally {
      texture.destroy();
    }
  }

  /** An image's memory can be reused once its kernels are submitted. Small images wait for the forward pass's submission. */
  #submit_large(bytes: number): void {
    if (bytes > LARGE_IMAGE) this.call(() => this.#glue?.submit());
  }

  /** Times kernels by the device's clock. */
  readonly timing: Timing = {
    dispatches: () => this.call(() => this.#glue?.dispatches() ?? 0),
    bytes: (x) => this.#ask((glue) => glue.tensor_bytes(x)),
    start: () => this.call(() => this.#glue?.start_profile()),
    stop: () => this.copy(() => (this.#glue as GpuGlue).finish_profile()),
  };

  /** The tiles of its linear layers and attention. */
  readonly tiled: TiledEngine = {
    layer_shape: (weights, rows) => {
      const [outputs, inputs] = this.#ask((glue) => glue.linear_sizes(weights)) as unknown as [
        number,
        number,
      ];
      const dtype = this.#ask((glue) => glue.linear_dtype(weights)) as WeightDtype;
      return { op: "linear", rows, inputs, outputs, dtype };
    },
    tiles: (shape) => {
      const { op, rows, inputs, outputs, dtype } = shape;
      if (op === "attention") return this.#ask((glue) => glue.attention_tiles(attention_sizes(shape)));
      return this.#ask((glue) => glue.linear_tiles(rows, inputs, outputs, dtype));
    },
    choose_tile: (shape, tile) => {
      const { op, rows, inputs, outputs, dtype } = shape;
      if (op === "attention") this.#ask((glue) => glue.choose_attention_tile(attention_sizes(shape), tile));
      else this.#ask((glue) => glue.choose_linear_tile(rows, inputs, outputs, dtype, tile));
    },
    still_holds: (choice) => {
      const tiles = this.tiled.tiles(choice);
      const is_offered = tiles[0] === choice.default_tile && tiles.includes(choice.tile);
      return is_offered && tiles.every((tile) => tile in choice.ms);
    },
    chosen: (shape) => this.#tile_cache.choices.get(shape_key(shape)),
    remember: async (choices) => {
      for (const choice of choices) this.#tile_cache.choices.set(shape_key(choice), choice);
      await this.#tile_cache.write();
    },
    time: async (shape, weights, times) => {
      this.#ask((glue) =>
        weights === undefined
          ? glue.run_attention(attention_sizes(shape), times)
          : glue.run_linear(weights, shape.rows, times),
      );
      const start = performance.now();
      this.#ask((glue) => glue.submit());
      await this.#opened.device.queue.onSubmittedWorkDone();
      const ms = performance.now() - start;
      await this.copy(() => this.#glue?.settle());
      return ms;
    },
  };

  #ask<T>(question: (glue: GpuGlue) => T): T {
    return this.call(() => question(this.#glue as GpuGlue));
  }

  /**
   * Opens the device, tests it, and applies the tiles chosen on its adapter.
   * @throws VitMsnError UNSUPPORTED or OUT_OF_MEMORY.
   */
  async open(): Promise<void> {
    try {
      const { adapter, subgroups } = this.#opened;
      const opening = this.copy(() => this.#glue?.open(subgroups, has_few_registers(adapter)));
      await Promise.all([opening, this.#tile_cache.read()]);
      await this.#test();
      for (const choice of this.#tile_cache.choices.values()) {
        if (this.tiled.still_holds(choice)) this.tiled.choose_tile(choice, choice.tile);
      }
      this.#clock.skip(this.#ask((glue) => glue.submitted_work()));
      this.#limit_submissions();
    } catch (error) {
      await this.dispose();
      throw error;
    }
  }

  /** Tests the kernels on this device; those that it computes wrong or refuses aren't used. */
  async #test(): Promise<void> {
    let found: string[];
    do {
      const { compiled } = await this.compile_ahead(async () => this.#ask((glue) => glue.plan_self_test()));
      await compiled;
      found = await this.copy(() => (this.#glue as GpuGlue).self_test());
      this.findings.push(...found);
      // Another pass tests what replaces the kernels that failed.
    } while (found.length > 0);
  }

  /** Waits until the device has accepted all buffers and uploads. */
  override async ready(): Promise<void> {
    if (!this.#plans) await this.copy(() => this.#glue?.settle());
  }

  /**
   * Waits until the device has finished what was submitted. A forward pass with less work than the limit is one submission,
   * made when its result is read. A longer one can be aborted between its submissions.
   */
  override async caught_up(): Promise<void> {
    if (this.#plans || this.#clock.is_idle(this.#ask((glue) => glue.submitted_work()))) return;
    await this.#time(this.#nudger.until(this.#opened.device.queue.onSubmittedWorkDone()));
  }

  /** Frees every buffer, and destroys the device unless the host passed it. */
  override async dispose(): Promise<void> {
    const glue = this.#glue;
    this.#glue = undefined;
    this.#end.is_disposed = true;
    await super.dispose();
    if (glue === undefined) return;
    try {
      glue.close();
    } catch {
      // It trapped before: its buffers end with the device.
    }
    if (!this.#opened.is_own) return;
    this.#opened.device.destroy();
    await this.#opened.device.lost;
  }

  /** If the device was lost, reports that rather than the errors that follow from it. */
  protected override async copy<T>(op: (glue: Glue) => T | Promise<T>): Promise<T> {
    try {
      return await this.#nudger.until(super.copy(op));
    } catch (error) {
      await Promise.race([this.#opened.device.lost, next_task()]);
      throw (this.#glue && this.death(error)) ?? error;
    }
  }

  protected override reserved(): number {
    return this.#glue?.reserved() ?? 0;
  }
}

const LARGE_IMAGE = 1 << 20;

/** Attention's sizes as the binary takes them. How heads are divided into images doesn't change a tile's time. */
function attention_sizes({ rows, inputs, outputs }: LayerShape): Uint32Array {
  return Uint32Array.of(1, rows, outputs, inputs);
}

/** GPUTextureUsage's COPY_SRC, COPY_DST and RENDER_ATTACHMENT, which drawing needs; Node has no such global. */
const DRAWN = 1 | 2 | 16;

/** A plan in the form that the binary takes. */
function pack_plan({ columns, rows, rows_first, left, top }: ImagePlan): Int32Array {
  const head = [columns.stride, rows.stride, columns.table.length, Number(rows_first), left, top];
  const packed = new Int32Array(head.length + columns.table.length + rows.table.length);
  packed.set(head);
  packed.set(columns.table, head.length);
  packed.set(rows.table, head.length + columns.table.length);
  return packed;
}
