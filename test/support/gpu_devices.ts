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
  Object.defineProperty(device, "adapterInfo", { value });
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
}

export interface Pretence {
  /** Bytes of the largest storage binding. */
  binds?: number;
  /** An adapter that doesn't claim to be software. */
  is_hardware?: boolean;
  /** Pipelines can't be compiled ahead. */
  refuses_ahead?: boolean;
}

/** A view of a device that counts calls and may report other properties than the device has. */
export function watched(device: GPUDevice, pretence: Pretence = {}): { seen: Seen; view: GPUDevice } {
  const seen: Seen = { pipelines: { synchronous: 0, asynchronous: 0 }, command_buffers: 0 };
  const { binds, is_hardware, refuses_ahead } = pretence;
  const own: Record<string, unknown> = {
    queue: view_of(device.queue, {
      submit: (buffers: GPUCommandBuffer[]) => {
        seen.command_buffers += buffers.length;
        device.queue.submit(buffers);
      },
    }),
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
  if (is_hardware) own.adapterInfo = { description: "SwiftShader", isFallbackAdapter: false };
  return { seen, view: view_of(device, own) };
}

function view_of<T extends object>(target: T, own: Record<string, unknown>): T {
  return new Proxy(target, {
    get(_, name) {
      if (Object.hasOwn(own, name)) return own[name as string];
      const member = Reflect.get(target, name, target) as unknown;
      return typeof member === "function" ? member.bind(target) : member;
    },
    set: (_, name, value) => Reflect.set(target, name, value, target),
  });
}
