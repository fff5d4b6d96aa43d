import { readdir, readFile } from "node:fs/promises";
import sharp from "sharp";
import { RawImage } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ENGINES, start_browser, type TestBrowser, with_page } from "../support/browsers/browsers.ts";
import { stated_column } from "../support/guide_tables.ts";
import { difference } from "../support/images.ts";
import { type StaticServer, serve } from "../support/static_server.ts";
import { type FixtureTensor, read_tensors } from "../support/tensors.ts";

// Files of all formats, read by each browser in a page and in a Worker, and how far they are from Pillow's pixels. What the guide
// says of that is compared with what is found.

const root = new URL("../../", import.meta.url);
const FOLDER = "test/fixtures/image_files";

/** A row of the guide's table: names of files. The first that matches counts. */
const KINDS: readonly [string, RegExp][] = [
  ["PNG, GIF, BMP, PNM", /\.(png|gif|bmp|p[bgp]m)$/],
  ["JPEG", /\.jpg$/],
  [
    "WebP, lossless",
    /(lossless|transparent|turned_transparent|orientation_\d)\.webp$|^xmp.*webp$|^exif.*webp$/,
  ],
  ["WebP, lossy", /\.webp$/],
  ["AVIF with shared chroma (4:2:0, 4:2:2)", /^(42[02]_|animated|turned_\d|profile).*\.avif$/],
  ["AVIF without shared chroma (4:4:4, grey)", /\.avif$/],
];

interface File {
  bytes: Uint8Array;
  /** RGB. */
  expected: { dims: readonly number[]; data: Uint8Array };
}

const files = new Map<string, File>();
let server: StaticServer;

beforeAll(async () => {
  const expected = await read_tensors(`${FOLDER}/expected.safetensors`);
  for (const name of await readdir(new URL(FOLDER, root))) {
    const rgb = expected.get(`rgb.${name}`);
    if (rgb)
      files.set(name, {
        bytes: await readFile(new URL(`${FOLDER}/${name}`, root)),
        expected: bytes_of(rgb),
      });
  }
  const kinds = await read_tensors("test/fixtures/image_kinds/image_kinds.safetensors");
  for (const [key, tensor] of kinds) {
    const name = key.slice(5);
    // Browsers have no decoder of TIFF, and the guide names what is wrong in Chromium with this AVIF.
    if (!key.startsWith("file.") || name.endsWith(".tif") || name === "premultiplied.avif") continue;
    const rgb = kinds.get(`rgb.${name}`) as FixtureTensor;
    files.set(name, { bytes: tensor.data as Uint8Array, expected: bytes_of(rgb) });
  }
  for (const [name, bytes] of await made_files()) {
    const { data, height, width } = (await RawImage.read(bytes)).rgb();
    files.set(name, { bytes, expected: { dims: [height, width, 3], data: Uint8Array.from(data) } });
  }
  server = await serve({
    "index.html": new TextEncoder().encode("<!doctype html>"),
    "decode.js": new TextEncoder().encode(DECODE),
    ...(await bundles()),
    ...Object.fromEntries([...files].map(([name, { bytes }]) => [`files/${name}`, bytes])),
  });
});
afterAll(() => server.close());

function bytes_of({ dims, data }: FixtureTensor): File["expected"] {
  return { dims, data: data as Uint8Array };
}

/** What the fixtures lack: alpha of lossy WebP, and the profile that phones write. */
async function made_files(): Promise<[string, Uint8Array][]> {
  const [width, height] = [40, 24];
  const data = new Uint8Array(width * height * 4);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      data.set([6 * x, 10 * y, 255 - 6 * x, (x * y) % 256], (y * width + x) * 4);
  const image = () => sharp(data, { raw: { width, height, channels: 4 } });
  const in_p3 = () => image().removeAlpha().withIccProfile("p3");
  const webp = await image().webp({ quality: 95 }).toBuffer();
  return [
    ["alpha.webp", webp],
    ["exact_lossless.webp", await image().webp({ lossless: true, exact: true }).toBuffer()],
    ["p3.jpg", await in_p3().jpeg({ quality: 95, chromaSubsampling: "4:4:4" }).toBuffer()],
    ["p3.webp", await in_p3().webp({ quality: 95 }).toBuffer()],
    ["p3_444.avif", await in_p3().avif({ quality: 95, chromaSubsampling: "4:4:4" }).toBuffer()],
  ];
}

async function bundles(): Promise<Record<string, Uint8Array>> {
  const names = (await readdir(new URL("dist", root))).filter((name) => name.endsWith(".web.js"));
  return Object.fromEntries(
    await Promise.all(
      names.map(async (name) => [`dist/${name}`, await readFile(new URL(`dist/${name}`, root))]),
    ),
  );
}

/** Decodes a file, in a page or in a Worker. */
const DECODE = `
import { RawImage } from "/dist/index.web.js";
export async function decode(name) {
  const { data, width, height } = (await RawImage.read("/files/" + name)).rgb();
  let text = "";
  for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
  return { dims: [height, width, 3], data: btoa(text) };
}
if (typeof document === "undefined")
  onmessage = async ({ data }) => postMessage(await decode(data).catch((error) => ({ error: String(error) })));
`;

const IN_PAGE = `
const { decode } = await import("/decode.js");
const found = {};
for (const name of arg) found[name] = await decode(name).catch((error) => ({ error: String(error) }));
return found;
`;
const IN_WORKER = `
const worker = (globalThis.worker = new Worker("/decode.js", { type: "module" }));
const found = {};
for (const name of arg) {
  const answer = new Promise((resolve) => { worker.onmessage = ({ data }) => resolve(data); });
  worker.postMessage(name);
  found[name] = await answer;
}
worker.terminate();
return found;
`;

type Found = Record<string, { dims: number[]; data: string } | { error: string }>;

describe.each(ENGINES)("%s", (engine) => {
  let browser: TestBrowser;
  beforeAll(async () => {
    browser = await start_browser(engine);
  });
  afterAll(() => browser.close());

  test.each([
    ["a page", IN_PAGE],
    ["a Worker", IN_WORKER],
  ])("pixels are as the guide says, in %s", async (_, program) => {
    const found = await with_page(browser, server.url, (page) => page.run<Found>(program, [...files.keys()]));
    const largest = new Map<string, number>();
    for (const [name, { expected }] of files) {
      const image = found[name];
      if (image === undefined || "error" in image) throw new Error(`${name}: ${image?.error}`);
      expect(image.dims, name).toEqual(expected.dims);
      const { max } = difference(Buffer.from(image.data, "base64"), expected.data);
      const [kind] = KINDS.find(([, pattern]) => pattern.test(name)) as [string, RegExp];
      if (max > (largest.get(kind) ?? -1)) largest.set(kind, max);
    }
    console.log(engine, Object.fromEntries(largest));
    for (const [kind, difference] of Object.entries(await stated(engine))) {
      const found = largest.get(kind);
      if (difference <= SMALL) expect(found, kind).toBe(difference);
      else expect(Math.abs((found as number) - difference), kind).toBeLessThanOrEqual(ROUNDING);
    }
  });
});

/** A difference above it is an approximation of the browser's, which its vector code rounds differently on other CPUs. */
const SMALL = 2;
const ROUNDING = 2;

/** The column of a browser in the guide's table. */
async function stated(engine: string): Promise<Record<string, number>> {
  const column = await stated_column("largest difference", engine);
  return Object.fromEntries(KINDS.map(([kind]) => [kind, Number.parseInt(column.get(kind) ?? "", 10)]));
}
