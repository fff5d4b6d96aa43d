import { pipeline } from "vit-msn";

try {
  const classify = await pipeline("image-classification", undefined, { worker: true, num_threads: 2 });
  const [best] = await classify("/boot.png", { top_k: 1 });
  document.title = JSON.stringify({ ...best, ...classify.model.engine_info });
} catch (error) {
  document.title = `failed: ${error}`;
}
