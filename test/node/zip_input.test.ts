import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { crc32, deflateRawSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ZipFile } from "yazl";
import { list_images } from "../../ts/cli/batch/sources.ts";
import { SkippedFiles } from "../../ts/files/index.ts";
import type { VitMsnError } from "../../ts/index.ts";
import { root, vit_msn } from "../support/cli.ts";
import { type Member, zip } from "../support/torch_archive.ts";

const IMAGES = join(root, "models/fashion/pictures");
const DEFLATED = 8;
const ENCRYPTED = 1;

let folder: string;
let boot: Buffer;
let bag: Buffer;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-zip-"));
  boot = await readFile(join(IMAGES, "9-ankle-boot.png"));
  bag = await readFile(join(IMAGES, "8-bag.png"));
});
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
async function archive(bytes: Uint8Array): Promise<string> {
  const path = join(folder, `${count++}.zip`);
  await writeFile(path, bytes);
  return path;
}

/** As other programs write it. */
async function written(fill: (file: ZipFile) => void, forceZip64Format = false): Promise<Buffer> {
  const file = new ZipFile();
  fill(file);
  file.end({ forceZip64Format, comment: "" });
  return buffer(file.outputStream);
}

/** What is read of an archive: each member's size, or the code and message of its error. */
async function read(path: string) {
  const skipped = new SkippedFiles();
  const { signal } = new AbortController();
  const found: [string, string][] = [];
  const sources = { paths: [path], lists: [], download: { retries: 0, timeout_ms: 1000 } };
  for await (const image of list_images(sources, signal, { skipped })) {
    const outcome = await image.read({ signal }).then(
      ({ width, height }) => `${width}×${height}`,
      (error: VitMsnError) => `${error.code}: ${error.message}`,
    );
    found.push([image.name.replace(`${path}/`, ""), outcome]);
  }
  return { found, skipped: skipped.summary() };
}

const stored = (name: string, data: Uint8Array): Member => ({ name, data, crc32: crc32(data) });
const deflated = (name: string, data: Uint8Array): Member => {
  const packed = deflateRawSync(data);
  return {
    name,
    data: packed,
    method: DEFLATED,
    crc32: crc32(data),
    claimed_size: data.length,
    claimed_packed_size: packed.length,
  };
};

describe("zip archives", () => {
  test("are sources of embed, whatever wrote them; rows are those of the files", async () => {
    const path = await archive(
      await written((file) => {
        file.addBuffer(boot, "a/boot.png", { compress: false });
        file.addBuffer(bag, "größe/bag.png", { compress: true });
        file.addBuffer(Buffer.from("text"), "a/read me.txt");
        file.addBuffer(boot, "__MACOSX/._boot.png");
        file.addEmptyDirectory("empty.png");
        file.addBuffer(Buffer.from("a/boot.png"), "link.png", { mode: 0o120777 });
      }),
    );
    const { code, stdout, stderr } = await vit_msn(["embed", path, "--model", "test/fixtures/tiny"]);
    const rows = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(rows.map(({ image }) => image)).toEqual([`${path}/a/boot.png`, `${path}/größe/bag.png`]);
    expect([code, stderr]).toEqual([
      0,
      "vit-msn: skipped 1 file that is not an image: .txt 1; skipped members of archives that aren't files (1).\n",
    ]);
    const files = ["9-ankle-boot.png", "8-bag.png"].map((name) => join(IMAGES, name));
    const alone = await vit_msn(["embed", ...files, "--model", "test/fixtures/tiny"]);
    const expected = alone.stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).embedding);
    expect(rows.map(({ embedding }) => embedding)).toEqual(expected);
  });

  test("in a folder, by a glob, in a list and by a file URL", async () => {
    const path = await archive(zip([stored("a.png", boot)]));
    const list = join(folder, "list.txt");
    await writeFile(list, `${path}\nfile://${path}\n`);
    const args = [path.replace(/\d+\.zip/, `{${count - 1},x}.zip`), "--list", list];
    const { code, stdout } = await vit_msn(["embed", ...args, "--model", "test/fixtures/tiny"]);
    expect([code, stdout.trim().split("\n")]).toEqual([0, Array(3).fill(expect.stringContaining(path))]);
  });

  test("with 64-bit sizes, data descriptors, comments and bytes before the first member", async () => {
    const wide = await written((file) => file.addBuffer(boot, "a.png", { forceZip64Format: true }), true);
    const streamed = await written((file) => {
      file.addReadStreamLazy("a.png", { compress: true }, (give) => give(null, Readable.from([boot])));
    });
    const noted = zip([stored("a.png", boot)]);
    const comment = Buffer.from("PK\x05\x06 is no end");
    noted[noted.length - 2] = comment.length;
    for (const bytes of [wide, streamed, Buffer.concat([noted, comment])])
      expect((await read(await archive(bytes))).found).toEqual([["a.png", "28×28"]]);
  });
});

describe("a hostile member fails alone:", () => {
  const bomb = deflateRawSync(Buffer.alloc(64 * 1024 * 1024));
  test.each<[string, () => Member, RegExp]>([
    [
      "encrypted",
      () => ({ ...stored("x.png", boot), flags: ENCRYPTED }),
      /^UNSUPPORTED: .*x\.png is encrypted; unpack/,
    ],
    [
      "LZMA",
      () => ({ ...stored("x.png", boot), method: 14 }),
      /^UNSUPPORTED: .*x\.png is compressed by LZMA/,
    ],
    ["method 1234", () => ({ ...stored("x.png", boot), method: 1234 }), /^UNSUPPORTED: .*method 1234/],
    ["a wrong CRC-32", () => ({ ...deflated("x.png", boot), crc32: 1 }), /^INVALID_IMAGE: .*x\.png.*CRC-32/],
    [
      "two sizes of a stored member",
      () => ({ ...stored("x.png", boot), claimed_size: 5, claimed_packed_size: boot.length }),
      /^INVALID_IMAGE: .*instead of 5/,
    ],
    [
      "a bomb, which stops at the size that it claims",
      () => ({
        ...stored("x.png", bomb),
        method: DEFLATED,
        claimed_size: 9,
        claimed_packed_size: bomb.length,
      }),
      /^INVALID_IMAGE: .*x\.png.*more than its 9 bytes/,
    ],
    [
      "a bomb that admits its size",
      () => ({
        ...stored("x.png", bomb),
        method: DEFLATED,
        claimed_size: 300 * 1024 * 1024,
        claimed_packed_size: bomb.length,
      }),
      /^INVALID_IMAGE: .*x\.png has 314572800 bytes, more than the limit/,
    ],
    [
      "noise instead of Deflate",
      () => ({ ...stored("x.png", boot), method: DEFLATED }),
      /^INVALID_IMAGE: .*x\.png.*can't be decompressed/,
    ],
    [
      "another name in its own header",
      () => ({ ...stored("x.png", boot), local_name: "y.png" }),
      /^INVALID_IMAGE: .*both "x\.png" and "y\.png"/,
    ],
    ["no image", () => stored("x.png", Buffer.from("not an image")), /^INVALID_IMAGE/],
    ["empty", () => stored("x.png", Buffer.alloc(0)), /^INVALID_IMAGE/],
  ])("%s", async (_, make, message) => {
    const { found } = await read(await archive(zip([make(), stored("y.png", bag)])));
    expect(found).toEqual([
      ["x.png", expect.stringMatching(message)],
      ["y.png", "28×28"],
    ]);
  });

  test.each(["../../up.png", "/etc/root.png", "C:\\a\\b.png", "a\nb.png", "x.png"])(
    "the name %j names a row, and nothing else",
    async (name) => {
      const { found } = await read(await archive(zip([stored(name, boot), stored("x.png", bag)])));
      expect(found).toEqual([
        [name, "28×28"],
        ["x.png", "28×28"],
      ]);
    },
  );
});

describe("a damaged archive is one error:", () => {
  const two = () => zip([stored("a.png", boot), stored("b.png", bag)]);
  test.each<[string, () => Uint8Array, RegExp]>([
    ["cut off", () => two().subarray(0, -30), /no zip directory at its end/],
    ["empty", () => new Uint8Array(), /no zip directory at its end/],
    [
      "overlapping members",
      () => zip([stored("a.png", boot), { ...stored("b.png", bag), claimed_offset: 20 }]),
      /overlaps another/,
    ],
    [
      "one member twice",
      () => zip([stored("a.png", boot), { ...stored("a.png", boot), claimed_offset: 0 }]),
      /overlaps/,
    ],
    [
      "a size past the end",
      () => zip([{ ...stored("a.png", boot), claimed_size: 1e9, claimed_packed_size: 1e9 }]),
      /past the file/,
    ],
    [
      "too many members",
      () => zip([stored("a.png", boot)], { claimed_count: 60_000 }),
      /claims 60000 zip entries/,
    ],
    ["several disks", () => zip([stored("a.png", boot)], { disk: 1 }), /several disks/],
  ])("%s", async (_, make, message) => {
    const path = await archive(make());
    expect((await read(path)).found).toEqual([[path, expect.stringMatching(message)]]);
    expect((await read(path)).found[0]?.[1]).toMatch(/^INVALID_IMAGE: .*can't be read as a zip archive: it /);
  });

  test("nothing in it", async () => {
    const path = await archive(zip([]));
    expect((await read(path)).found).toEqual([[path, expect.stringMatching(/^NOT_FOUND: .*no images/)]]);
  });

  test("a folder of that name is a folder, a missing one is missing", async () => {
    expect((await read(join(folder, "no.zip"))).found[0]?.[1]).toMatch(/^NOT_FOUND/);
  });
});
