/**
 * Images to pixel_values, compared with sharp's resize (libvips, native code, one thread): MB/s of decoded pixels.
 */
import { parseArgs } from "node:util";
import sharp from "sharp";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import { RawImage } from "../ts/image/raw_image.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { type Body, repeat } from "./support/timing.ts";
import { smooth_image } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs image [OPTIONS]

  --size WxH   the image; default 640x480 and 4000x3000
  --json       print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const SIDE = 224;

async function measure(width: number, height: number): Promise<Row[]> {
  const pixels = smooth_image(width, height);
  const raw = { width, height, channels: 3 } as const;
  const image = new RawImage(pixels, width, height, 3);
  const jpeg = await sharp(pixels, { raw }).jpeg({ quality: 90 }).toBuffer();
  const png = await sharp(pixels, { raw }).png().toBuffer();
  const processor = new ViTImageProcessor();
  const steps: [string, Body][] = [
    ["decode JPEG", () => RawImage.read(jpeg)],
    ["decode PNG", () => RawImage.read(png)],
    [`resize to ${SIDE}×${SIDE}, bilinear`, () => image.resize(SIDE, SIDE)],
    [`resize to ${SIDE}×${SIDE}, bicubic`, () => image.resize(SIDE, SIDE, { resample: "bicubic" })],
    ["processor: resize and normalise", () => processor.preprocess(image)],
    ["processor: JPEG to pixel_values", () => processor.preprocess(jpeg)],
    [
      `sharp: resize to ${SIDE}×${SIDE}, linear`,
      () => sharp(pixels, { raw }).resize(SIDE, SIDE, { fit: "fill", kernel: "linear" }).raw().toBuffer(),
    ],
    [
      `sharp: JPEG to ${SIDE}×${SIDE}, linear`,
      () => sharp(jpeg).resize(SIDE, SIDE, { fit: "fill", kernel: "linear" }).raw().toBuffer(),
    ],
  ];
  const rows: Row[] = [];
  for (const [step, body] of steps) {
    const ms = await repeat(body, { min_ms: 500, min_rounds: 5 });
    rows.push({
      image: `${width}×${height}`,
      step,
      ms: round(ms, 2),
      "MB/s": round(pixels.length / ms / 1e3),
    });
  }
  return rows;
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  sharp.concurrency(1);
  sharp.cache(false);
  const where = machine();
  const sizes = options.size === undefined ? ["640x480", "4000x3000"] : [options.size];
  const rows: Row[] = [];
  for (const size of sizes) {
    const [width, height] = size.split("x").map(Number);
    if (!width || !height) throw new Error("--size is WIDTHxHEIGHT, as 640x480.");
    rows.push(...(await measure(width, height)));
  }
  print("Images to pixel_values, one thread; MB of decoded RGB pixels", where, rows, options.json);
}

await main();
