// Loads a classifier from a folder and runs it once, in a separate process: prints resident bytes as JSON.
// Usage: node load_from_disk.mjs FOLDER
import { Tensor, ViTMSNForImageClassification } from "vit-msn";

const before = process.memoryUsage().rss;
const model = await ViTMSNForImageClassification.from_pretrained(process.argv[2] ?? "", {
  local_files_only: true,
  // With "auto" the drivers of WebGPU, where there are some, are loaded to look for a GPU: not what is measured here.
  device: "wasm",
});
const loaded = process.memoryUsage().rss;
await model.forward({
  pixel_values: new Tensor("float32", new Float32Array(3 * 224 * 224), [1, 3, 224, 224]),
});
const peak = process.resourceUsage().maxRSS * 1024;
console.log(JSON.stringify({ before, loaded, peak, reserved_after: model.memory().reserved }));
