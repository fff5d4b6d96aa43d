// Loads, runs and disposes a classifier again and again: prints resident bytes after each ten cycles as JSON.
// Usage: node --expose-gc dispose_cycles.mjs FOLDER CYCLES
import { Tensor, ViTMSNForImageClassification } from "vit-msn";

const [folder = "", cycles = "0"] = process.argv.slice(2);
const resident = [];
for (let i = 1; i <= Number(cycles); i++) {
  const model = await ViTMSNForImageClassification.from_pretrained(folder, { local_files_only: true });
  const { num_channels, image_grid } = model.config;
  const dims = [1, num_channels, image_grid.height, image_grid.width];
  const data = new Float32Array(num_channels * image_grid.height * image_grid.width);
  await model.forward({ pixel_values: new Tensor("float32", data, dims) });
  await model.dispose();
  if (i % 10 === 0) resident.push(measure());
}
console.log(JSON.stringify(resident));

/** Without what is garbage already: the collector's own pace isn't what is measured. */
function measure() {
  globalThis.gc?.();
  return process.memoryUsage().rss;
}
