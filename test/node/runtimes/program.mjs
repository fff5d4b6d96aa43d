// Run by Deno and Bun: a fixture's logits and the bundled model's classes of images, as JSON.
// Usage: program.mjs FILE, of JSON: { fixture, pixel_values, dims, images, options }
import { readFile } from "node:fs/promises";
import process from "node:process";
import { env, pipeline, Tensor, ViTMSNForImageClassification } from "vit-msn";

const { fixture, pixel_values, dims, images, options } = JSON.parse(
  await readFile(process.argv[2] ?? "", "utf8"),
);
/** @type {string[]} */
const warnings = [];
env.warn = (message) => warnings.push(message);

const model = await ViTMSNForImageClassification.from_pretrained(fixture, options);
const { logits } = await model.forward({ pixel_values: new Tensor("float32", pixel_values, dims) });
await model.dispose();

const classify = await pipeline("image-classification", undefined, options);
const classes = [];
for (const image of /** @type {string[]} */ (images)) {
  const [best] = await classify(image, { top_k: 1 });
  classes.push(best?.label);
}
await classify.dispose();

console.log(JSON.stringify({ info: model.engine_info, logits: [...logits.data], classes, warnings }));
