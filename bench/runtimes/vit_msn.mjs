// Loads a model and classifies an image with this package; prints when it was ready and when the first answer came.
// Usage: vit_msn.mjs FOLDER_OF_MODELS NAME IMAGE
import process from "node:process";
import { measure } from "./measure.mjs";

const [folder, name, image = ""] = process.argv.slice(2);
const result = await measure(async () => {
  const { pipeline } = await import("vit-msn");
  const classify = await pipeline("image-classification", `${folder}/${name}`, { device: "wasm" });
  return () => classify(image, { top_k: 1 });
});
console.log(JSON.stringify(result));
process.exit();
