import type { OpenedDevice } from "./webgpu_device.ts";

/** What the WebGPU engine's glue uses in place of a page's globals. */
export interface GlueScope {
  /** Where js-sys looks for the global object first. */
  self: object;
  GPUOutOfMemoryError: { [Symbol.hasInstance](error: unknown): boolean };
  GPUValidationError: { [Symbol.hasInstance](error: unknown): boolean };
}

/**
 * The globals of a page whose `navigator.gpu` returns only the chosen device. wgpu gets its device from there and
 * nowhere else, and looks for `Window` first, which Node and Deno don't have. No real global is changed.
 */
export function scope_of(opened: OpenedDevice, ahead: CompiledAhead): GlueScope {
  const { device, adapter, wgsl_features, is_own } = opened;
  const { features, limits } = device;
  const view = view_of(device, is_own, ahead);
  const info = { description: adapter.name, isFallbackAdapter: adapter.is_software };
  const only_adapter = { features, limits, info, requestDevice: async () => view };
  // A copy: the keys() of Dawn's set don't return an iterator.
  const gpu = { requestAdapter: async () => only_adapter, wgslLanguageFeatures: new Set(wgsl_features) };
  const is_out_of_memory = (error: unknown) => error?.constructor?.name === "GPUOutOfMemoryError";
  return {
    self: { Window: true, navigator: { gpu }, queueMicrotask },
    // Some runtimes don't expose the error classes. wgpu knows two; internal errors count as validation errors.
    GPUOutOfMemoryError: { [Symbol.hasInstance]: is_out_of_memory },
    GPUValidationError: { [Symbol.hasInstance]: (error: unknown) => !is_out_of_memory(error) },
  };
}

/** Pipelines that are compiled before they are used. */
export class CompiledAhead {
  #started: Promise<void>[] | undefined;
  #refused: string[] = [];

  /** From now on, requested pipelines compile at the same time, and callers get a stand-in. */
  begin(): void {
    this.#started = [];
  }

  /**
   * Callers get real pipelines again; resolves when those requested since `begin` are compiled, with the labels of those
   * that the driver refused.
   */
  async end(): Promise<string[]> {
    const started = this.#started;
    this.#started = undefined;
    await Promise.all(started ?? []);
    return this.#refused.splice(0);
  }

  /** The pipeline, or a stand-in while pipelines are compiled ahead. */
  get(device: GPUDevice, made: Lazily<string, GPUComputePipeline>, descriptor: GPUComputePipelineDescriptor) {
    const entry_point = String(descriptor.compute.entryPoint);
    if (this.#started === undefined)
      return made.get(entry_point, () => device.createComputePipeline(descriptor));
    if (!made.has(entry_point)) {
      const store = (pipeline: GPUComputePipeline) => void made.get(entry_point, () => pipeline);
      const compiled = device.createComputePipelineAsync(descriptor);
      this.#started.push(compiled.catch(() => this.#compile_now(device, descriptor)).then(store, () => {}));
    }
    return {} as GPUComputePipeline;
  }

  /** A pipeline that wasn't compiled ahead. @throws Error if the driver refuses it. */
  async #compile_now(device: GPUDevice, descriptor: GPUComputePipelineDescriptor) {
    device.pushErrorScope("internal");
    device.pushErrorScope("validation");
    const pipeline = device.createComputePipeline(descriptor);
    const errors = await Promise.all([device.popErrorScope(), device.popErrorScope()]);
    const error = errors.find((each) => each !== null);
    if (error === undefined) return pipeline;
    if (descriptor.label) this.#refused.push(descriptor.label);
    throw new Error(error?.message);
  }
}

/**
 * The device as one engine sees it. A host's device outlives its models: handlers that wgpu sets, which would keep the
 * engine alive and replace the host's own error handler, are ignored. All engines on the device share what was
 * compiled. `lost` never resolves here, since TypeScript reports the loss.
 */
function view_of(device: GPUDevice, is_own: boolean, ahead: CompiledAhead): GPUDevice {
  const { modules, pipelines } = compiled_on(device);
  const own = {
    lost: new Promise<GPUDeviceLostInfo>(() => {}),
    createShaderModule: (descriptor: GPUShaderModuleDescriptor) =>
      modules.get(descriptor.code, () => device.createShaderModule(descriptor)),
    createComputePipeline: (descriptor: GPUComputePipelineDescriptor) =>
      ahead.get(
        device,
        pipelines.get(descriptor.compute.module, () => new Lazily<string, GPUComputePipeline>()),
        descriptor,
      ),
  };
  return new Proxy(device, {
    get(target, name) {
      if (Object.hasOwn(own, name)) return own[name as keyof typeof own];
      const member = Reflect.get(target, name, target) as unknown;
      return typeof member === "function" ? member.bind(target) : member;
    },
    set: (target, name, value) => !is_own || Reflect.set(target, name, value, target),
  });
}

/** A device's shader modules by source, and their pipelines by entry point: these two determine everything else. */
interface Compiled {
  modules: Lazily<string, GPUShaderModule>;
  pipelines: Lazily<GPUShaderModule, Lazily<string, GPUComputePipeline>>;
}

const compiled = new WeakMap<GPUDevice, Compiled>();

function compiled_on(device: GPUDevice): Compiled {
  const found = compiled.get(device) ?? { modules: new Lazily(), pipelines: new Lazily() };
  compiled.set(device, found);
  return found;
}

/** A map that creates missing values. */
class Lazily<K, V> {
  readonly #made = new Map<K, V>();

  has(key: K): boolean {
    return this.#made.has(key);
  }

  get(key: K, make: () => V): V {
    const value = this.#made.get(key) ?? make();
    this.#made.set(key, value);
    return value;
  }
}
