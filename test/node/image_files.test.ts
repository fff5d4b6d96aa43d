import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { ViTImageProcessor } from "../../ts/image/image_processing_vit.ts";
import { RawImage } from "../../ts/image/raw_image.ts";

const folder = fileURLToPath(new URL("../fixtures/pictures/", import.meta.url));
const path = join(folder, "rgb.png");
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "vit-msn-image-"));
});
afterAll(() => rm(directory, { recursive: true }));

describe("RawImage.read takes files", () => {
  test("by path, file: URL and Buffer", async () => {
    const image = await RawImage.read(path);
    expect([image.size, image.channels]).toEqual([[37, 23], 3]);
    expect(await RawImage.read(pathToFileURL(path))).toEqual(image);
    expect(await RawImage.read(pathToFileURL(path).href)).toEqual(image);
    expect(await RawImage.read(await readFile(path))).toEqual(image);
  });

  test("by http, from a real server", async () => {
    const server: Server = createServer(async (_, response) => response.end(await readFile(path)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    expect(await RawImage.read(`http://127.0.0.1:${port}/a.png`)).toEqual(await RawImage.read(path));
    server.close();
  });

  test("and says what is wrong with those it can't read", async () => {
    await expect(RawImage.read("no/such.png")).rejects.toMatchObject({
      code: "NOT_FOUND",
      message: expect.stringContaining("no/such.png"),
    });
    await expect(RawImage.read(folder)).rejects.toMatchObject({ code: "IO" });
    const page = join(directory, "page.png");
    await writeFile(page, "<!doctype html><p>Sign in</p>");
    await expect(RawImage.read(page)).rejects.toMatchObject({
      code: "INVALID_IMAGE",
      message: expect.stringMatching(/page\.png is an HTML page/),
    });
    await expect(RawImage.read(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "ABORTED",
    });
  });

  test("but not BMP, which sharp can't read", async () => {
    const bmp = new Uint8Array(60);
    bmp.set([0x42, 0x4d]);
    bmp.set([40, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], 14);
    await expect(RawImage.read(bmp)).rejects.toMatchObject({ code: "UNSUPPORTED" });
  });
});

test("without sharp, the error says how to install it", async () => {
  vi.doMock("sharp", () => {
    throw new Error("Cannot find package 'sharp'");
  });
  vi.resetModules();
  const { RawImage: WithoutSharp } = await import("../../ts/image/raw_image.ts");
  await expect(WithoutSharp.read(path)).rejects.toMatchObject({
    code: "UNSUPPORTED",
    message: expect.stringContaining("npm install sharp"),
  });
  vi.doUnmock("sharp");
});

test("a processor is saved to a folder and loaded from it", async () => {
  const processor = new ViTImageProcessor({
    image_processor_type: "ViTImageProcessor",
    size: 32,
    image_mean: [0.1, 0.2, 0.3],
    note: "kept",
  });
  await processor.save_pretrained(directory);
  const again = await ViTImageProcessor.from_pretrained(directory);
  expect(again.to_dict()).toEqual(processor.to_dict());
  expect(JSON.parse(await readFile(join(directory, "preprocessor_config.json"), "utf8"))).toMatchObject({
    image_processor_type: "ViTImageProcessor",
    note: "kept",
  });
});
