// Run by Deno: a fixture's logits on WebGPU with each of the options, as JSON.
// Usage: webgpu.mjs FILE, of JSON: [{ fixture, pixel_values, dims, interpolate_pos_encoding, as_a_gpu, options }]
import { readFile } from "node:fs/promises";
import process from "node:process";
import { Tensor, ViTMSNForImageClassification } from "vit-msn";

/** A device with all that there is, taken for no software, so that it gets the kernels of GPUs. */
async function in_disguise() {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("WebGPU has no adapter here.");
  const device = await adapter.requestDevice({ requiredFeatures: ["shader-f16"] });
  const value = {
    vendor: "",
    architecture: "",
    device: "",
    description: "In disguise",
    isFallbackAdapter: false,
  };
  Object.defineProperty(device, "adapterInfo", { value });
  return device;
}

const found = [];
for (const run of JSON.parse(await readFile(process.argv[2] ?? "", "utf8"))) {
  const { fixture, pixel_values: data, dims, interpolate_pos_encoding, as_a_gpu, options } = run;
  const device = as_a_gpu ? await in_disguise() : "webgpu";
  const model = await ViTMSNForImageClassification.from_pretrained(fixture, { ...options, device });
  const pixel_values = new Tensor("float32", data, dims);
  const { logits } = await model.forward({ pixel_values, interpolate_pos_encoding });
  found.push({ device: model.device, info: model.engine_info, logits: [...logits.data] });
  await model.dispose();
}
console.log(JSON.stringify(found));
