import { pipeline } from "vit-msn";

export const dynamic = "force-dynamic";

export async function GET() {
  const classify = await pipeline("image-classification", undefined, { num_threads: 2 });
  const [best] = await classify("public/boot.png", { top_k: 1 });
  return Response.json({ ...best, ...classify.model.engine_info });
}
