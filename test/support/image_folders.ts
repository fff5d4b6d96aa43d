import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import sharp from "sharp";
import { read_tensors } from "./tensors.ts";

const [SIDE, PER_CLASS] = [28, 100];

/** Names of the classes that tests use, by their labels in test1000.safetensors. */
export const CLOTHES = { trouser: 1, sandal: 5, bag: 8 } as const;

/** Writes real images of clothes as PNG files into folders by class: root/class/0.png and so on. */
export async function write_image_folders(root: string, first: number, count: number): Promise<void> {
  const pixels = (await read_tensors("models/fashion/test1000.safetensors")).get("pictures")
    ?.data as Uint8Array;
  for (const [name, label] of Object.entries(CLOTHES)) {
    await mkdir(join(root, name), { recursive: true });
    for (let i = first; i < first + count; i++) {
      const start = (label * PER_CLASS + i) * SIDE * SIDE;
      const raw = { width: SIDE, height: SIDE, channels: 1 } as const;
      const png = sharp(pixels.slice(start, start + SIDE * SIDE), { raw }).png();
      await writeFile(join(root, name, `${i}.png`), await png.toBuffer());
    }
  }
}
