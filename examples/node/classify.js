// Usage: node classify.js IMAGE...
// Prints what is in each image, by the model that the package carries (ten kinds of clothes).
import { pipeline } from "vit-msn";

const classify = await pipeline("image-classification"); // or a folder, or a hub repository's id
for (const image of process.argv.slice(2)) {
  const [best] = await classify(image, { top_k: 1 });
  console.log(`${image}: ${best.label} (${(100 * best.score).toFixed(1)} %)`);
}
await classify.dispose();
