import { json } from "@sveltejs/kit";
import { pipeline } from "vit-msn";

export async function GET() {
  const classify = await pipeline("image-classification", undefined, { num_threads: 2 });
  const [best] = await classify("static/boot.png", { top_k: 1 });
  return json({ ...best, ...classify.model.engine_info });
}
