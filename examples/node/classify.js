// Usage: node classify.js PICTURE...
// Prints what is in each picture, by the model that the package carries (ten kinds of clothes).
import { pipeline } from "vit-msn";

const classify = await pipeline("image-classification"); // or a folder, or a hub repository's id
for (const picture of process.argv.slice(2)) {
  const [best] = await classify(picture, { top_k: 1 });
  console.log(`${picture}: ${best.label} (${(100 * best.score).toFixed(1)} %)`);
}
await classify.dispose();
