// Run by Deno: a fixture's logits on WebGPU with each of the options, as JSON.
// Usage: webgpu.mjs FILE, of JSON: [{ fixture, pixel_values, dims, interpolate_pos_encoding, options }]
import { readFile } from "node:fs/promises";
import process from "node:process";
import { Tensor, ViTMSNForImageClassification } from "vit-msn";

const found = [];
for (const run of JSON.parse(await readFile(process.argv[2] ?? "", "utf8"))) {
  const { fixture, pixel_values: data, dims, interpolate_pos_encoding, options } = run;
  const model = await ViTMSNForImageClassification.from_pretrained(fixture, { ...options, device: "webgpu" });
  const pixel_values = new Tensor("float32", data, dims);
  const { logits } = await model.forward({ pixel_values, interpolate_pos_encoding });
  found.push({ device: model.device, info: model.engine_info, logits: [...logits.data] });
  await model.dispose();
}
console.log(JSON.stringify(found));
