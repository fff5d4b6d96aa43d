import { env } from "vit-msn";

/** This runtime's WebGPU. */
export async function find_gpu(): Promise<GPU> {
  if (env.webgpu.gpu) return env.webgpu.gpu;
  const own = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (own) return own;
  // The name stays out of the import expression, so that the browser's bundler doesn't look for Node's package.
  const module_name = "webgpu";
  const { create } = (await import(/* @vite-ignore */ module_name)) as typeof import("webgpu");
  dawn ??= create([]);
  return dawn;
}

/** Dawn's devices don't survive it. */
let dawn: GPU | undefined;

/** With WebGPU's default limits and no feature, with all that the adapter has, or the latter and not taken for software. */
export type DeviceKind = (typeof DEVICE_KINDS)[number];
export const DEVICE_KINDS = ["default", "full", "as a GPU"] as const;

/** A device that the host opens itself. */
export async function open_device(kind: DeviceKind = "default"): Promise<GPUDevice> {
  const adapter = await (await find_gpu()).requestAdapter();
  if (!adapter) throw new Error("WebGPU has no adapter here.");
  if (kind === "default") return adapter.requestDevice();
  const device = await adapter.requestDevice({
    requiredFeatures: [...adapter.features] as GPUFeatureName[],
    requiredLimits: all_limits(adapter.limits),
  });
  if (kind === "as a GPU") describe_as_gpu(device);
  return device;
}

/** Software gets its own kernels; under another name it gets those of GPUs. */
export function describe_as_gpu(device: GPUDevice): void {
  const value = {
    vendor: "",
    architecture: "",
    device: "",
    description: "In disguise",
    isFallbackAdapter: false,
  };
  Object.defineProperty(device, "adapterInfo", { value, configurable: true });
}

function all_limits(limits: GPUSupportedLimits): Record<string, number> {
  const found: Record<string, number> = {};
  for (const name in limits) {
    const value = (limits as unknown as Record<string, unknown>)[name];
    if (typeof value === "number") found[name] = value;
  }
  return found;
}

/** What a device was asked for. */
export interface Seen {
  pipelines: { synchronous: number; asynchronous: number };
  command_buffers: number;
  scopes: number;
  bind_groups: number;
  /** Results or ends of work that were awaited. */
  answers: number;
}

export interface Pretence {
  /** Bytes of the largest storage binding. */
  binds?: number;
  /** An adapter that doesn't claim to be software. */
  is_hardware?: boolean;
  /** The adapter's name, of a GPU. */
  name?: string;
  /** Pipelines can't be compiled ahead. */
  refuses_ahead?: boolean;
  /** Errors of calls are reported only once this number of command buffers were submitted. */
  reports_after?: number;
  /** Finished work is noticed only when something is submitted, even if it is empty. */
  polls_on_submission?: boolean;
  /** Called when the device has finished the submitted work, before it is reported. */
  finished?: () => void | Promise<void>;
}

/** Something that happens repeatedly, and may be awaited. */
class Occasion {
  #waiting: (() => void)[] = [];

  readonly next = (): Promise<void> => new Promise((resolve) => this.#waiting.push(resolve));

  happen(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/**
 * A view of a device that counts calls and may report other properties than the device has. `reports_after` and
 * `finished` may be changed later.
 */
export function watched(device: GPUDevice, pretence: Pretence = {}): { seen: Seen; view: GPUDevice } {
  const seen: Seen = {
    pipelines: { synchronous: 0, asynchronous: 0 },
    command_buffers: 0,
    scopes: 0,
    bind_groups: 0,
    answers: 0,
  };
  const { binds, is_hardware, name, refuses_ahead, polls_on_submission } = pretence;
  const submitted = new Occasion();
  const noticed = async (done: Promise<unknown>) => {
    seen.answers += 1;
    await done;
    if (polls_on_submission) await submitted.next();
    await pretence.finished?.();
  };
  const own: Record<string, unknown> = {
    queue: view_of(device.queue, {
      submit: (buffers: GPUCommandBuffer[]) => {
        seen.command_buffers += buffers.length;
        device.queue.submit(buffers);
        submitted.happen();
      },
      onSubmittedWorkDone: () => noticed(device.queue.onSubmittedWorkDone()),
    }),
    popErrorScope: async () => {
      seen.scopes += 1;
      const error = device.popErrorScope();
      while (seen.command_buffers < (pretence.reports_after ?? 0)) await submitted.next();
      return error;
    },
    createBindGroup: (descriptor: GPUBindGroupDescriptor) => {
      seen.bind_groups += 1;
      return device.createBindGroup(descriptor);
    },
    createBuffer: (descriptor: GPUBufferDescriptor) => {
      const buffer = device.createBuffer(descriptor);
      const map = buffer.mapAsync.bind(buffer);
      buffer.mapAsync = async (...range) => {
        await noticed(map(...range));
        return undefined;
      };
      return buffer;
    },
    createComputePipeline: (descriptor: GPUComputePipelineDescriptor) => {
      seen.pipelines.synchronous += 1;
      return device.createComputePipeline(descriptor);
    },
    createComputePipelineAsync: (descriptor: GPUComputePipelineDescriptor) => {
      seen.pipelines.asynchronous += 1;
      if (refuses_ahead) return Promise.reject(new Error("refused"));
      return device.createComputePipelineAsync(descriptor);
    },
  };
  if (binds) own.limits = view_of(device.limits, { maxStorageBufferBindingSize: binds });
  // Kernels still know the software by its name.
  if (is_hardware) own.adapterInfo = { description: `SwiftShader ${name ?? ""}`, isFallbackAdapter: false };
  return { seen, view: view_of(device, own) };
}

/** The object with some members replaced. */
export function view_of<T extends object>(target: T, own: Record<string, unknown>): T {
  return new Proxy(target, {
    get(_, name) {
      if (Object.hasOwn(own, name)) return own[name as string];
      const member = Reflect.get(target, name, target) as unknown;
      return typeof member === "function" ? member.bind(target) : member;
    },
    set: (_, name, value) => Reflect.set(target, name, value, target),
  });
}
