import { find_gpu } from "#gpu";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import type { AdapterInfo } from "../engine_info.ts";

/** A device to compute on. */
export interface OpenedDevice {
  device: GPUDevice;
  adapter: AdapterInfo;
  wgsl_features: ReadonlySet<string>;
  /** Whether kernels can use subgroups. */
  subgroups: boolean;
  /** Whether it was opened here for one model, with which it ends. */
  is_own: boolean;
}

/** Optional features that kernels use. */
const FEATURES = ["shader-f16", "subgroups", "timestamp-query"] as const;

/** Limits that decide how large tensors and tiles may be; the adapter's maximum is requested. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupsPerDimension",
  "maxStorageBuffersPerShaderStage",
] as const;

/** GPUs without a suitable adapter for "auto", and why: a new request would cost each model a quarter of a second. */
const refused = new WeakMap<GPU, string>();

/**
 * Opens a device of the best adapter. The runtime must have WebGPU.
 * @param by_name whether WebGPU was requested by name: then software adapters are accepted.
 * @throws VitMsnError UNSUPPORTED, with what is missing and what to do about it.
 */
export async function open_device(by_name: boolean): Promise<OpenedDevice> {
  const gpu = (env.webgpu.gpu ?? (await find_gpu(!by_name))) as GPU;
  const earlier = by_name ? undefined : refused.get(gpu);
  if (earlier !== undefined) throw unsupported(earlier);
  try {
    return await open(gpu, by_name);
  } catch (error) {
    if (!by_name && error instanceof VitMsnError) refused.set(gpu, error.message);
    throw error;
  }
}

/** Describes a device that the host opened. */
export async function describe_device(device: GPUDevice): Promise<OpenedDevice> {
  const gpu = env.webgpu.gpu ?? (await find_gpu(false));
  return {
    device,
    // Runtimes without adapterInfo don't report which adapter a device came from.
    adapter: describe_adapter(device.adapterInfo as GPUAdapterInfo | undefined, device.features),
    wgsl_features: gpu?.wgslLanguageFeatures ?? new Set<string>(),
    subgroups: await takes_subgroups(device),
    is_own: false,
  };
}

async function open(gpu: GPU, by_name: boolean): Promise<OpenedDevice> {
  const adapter = await request_adapter(gpu);
  const described = describe_adapter(adapter.info, adapter.features);
  if (described.is_software && !(env.webgpu.allow_software ?? by_name)) {
    throw unsupported(
      `The only WebGPU adapter, ${described.name}, is a software renderer on the CPU` +
        `${by_name ? "" : ", slower than the CPU engine"}; set env.webgpu.allow_software = true to use it.`,
    );
  }
  const device = await request_device(adapter, described);
  const subgroups = await takes_subgroups(device);
  return { device, adapter: described, wgsl_features: gpu.wgslLanguageFeatures, subgroups, is_own: true };
}

/**
 * Whether kernels can use subgroups, tested with a module that does: wgpu, on which the kernels run, can't detect it in
 * browsers, and Deno has the feature but not the directive that the standard requires.
 */
async function takes_subgroups(device: GPUDevice): Promise<boolean> {
  if (!device.features.has("subgroups")) return false;
  device.pushErrorScope("validation");
  device.createShaderModule({ code: "enable subgroups;" });
  return (await device.popErrorScope()) === null;
}

/** Intel's, Qualcomm's and ARM's GPUs, by the vendor that browsers report or the name that drivers do. */
const FEW_REGISTERS = /\b(?:intel|qualcomm|adreno|arm|mali|immortalis)\b/i;

/** Whether the registers of an invocation that computes many results overflow to memory. */
export function has_few_registers({ vendor, name }: AdapterInfo): boolean {
  return FEW_REGISTERS.test(`${vendor} ${name}`);
}

async function request_adapter(gpu: GPU): Promise<GPUAdapter> {
  let cause: unknown;
  try {
    const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
    if (adapter) return adapter;
  } catch (error) {
    cause = error; // for example if a policy of the page blocks WebGPU
  }
  throw unsupported(
    `WebGPU has no adapter here${cause === undefined ? "" : ` (${String(cause)})`}: the browser or a policy blocks the GPU, ` +
      "or there is no driver for it; update the driver, see chrome://gpu in Chrome, " +
      'or run the model on the CPU with device "wasm".',
    cause,
  );
}

async function request_device(adapter: GPUAdapter, { name, features }: AdapterInfo): Promise<GPUDevice> {
  const limits = LIMITS.map((limit) => [limit, adapter.limits[limit]] as const);
  try {
    return await adapter.requestDevice({
      label: "vit-msn",
      requiredFeatures: features as GPUFeatureName[],
      requiredLimits: Object.fromEntries(limits.filter(([, value]) => value !== undefined)),
    });
  } catch (cause) {
    throw unsupported(
      `The GPU ${name} can't provide a device (${String(cause)}): close other programs that use it and try again, ` +
        'or run the model on the CPU with device "wasm".',
      cause,
    );
  }
}

function describe_adapter(
  info: GPUAdapterInfo | undefined,
  features: ReadonlySet<string> | GPUSupportedFeatures,
): AdapterInfo {
  const { vendor = "", architecture = "", description = "", device = "" } = info ?? {};
  const name = description || [vendor, architecture || device].filter(Boolean).join(" ") || "without a name";
  return Object.freeze({
    name,
    vendor,
    architecture,
    is_software: info?.isFallbackAdapter ?? false,
    features: Object.freeze(FEATURES.filter((feature) => features.has(feature))),
  });
}

function unsupported(message: string, cause?: unknown): VitMsnError {
  return new VitMsnError("UNSUPPORTED", message, { cause });
}
