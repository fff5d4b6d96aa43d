import { pipeline } from "../index.ts";
import { for_each_image, load, type ModelFlags } from "./run.ts";

interface EmbedFlags extends ModelFlags {
  pool?: "cls" | "mean";
}

/** `vit-msn embed`: prints one JSON line a picture, {"image", "embedding"}. Gives the exit code. */
export async function embed(images: string[], flags: EmbedFlags, signal: AbortSignal): Promise<number> {
  const extractor = await load(flags, signal, (options) =>
    pipeline("image-feature-extraction", flags.model, options),
  );
  try {
    return await for_each_image(images, signal, async (image, picture) => {
      const features = await extractor(picture, { pool: flags.pool ?? "cls", signal });
      process.stdout.write(`${JSON.stringify({ image, embedding: Array.from(features.data) })}\n`);
    });
  } finally {
    await extractor.dispose();
  }
}
