import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { root, vit_msn } from "../support/cli.ts";

// The fixtures were written by pyarrow as Hugging Face datasets does.
const LISTS = join(root, "test/fixtures/lists");
const IMAGES = join(root, "models/fashion/pictures");
const NAMES = ["1-trouser.png", "5-sandal.png", "8-bag.png", "9-ankle-boot.png"];

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-parquet-"));
});
afterAll(() => rm(folder, { recursive: true }));

async function embed(...args: string[]) {
  const { code, stdout, stderr } = await vit_msn(["embed", ...args, "--model", "test/fixtures/tiny"]);
  const rows: { image: string; embedding: number[] }[] = stdout
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  return { code, stderr, rows, images: rows.map(({ image }) => image) };
}

/** A file with these columns. */
async function written(name: string, columns: Record<string, unknown[]>): Promise<string> {
  const columnData = Object.entries(columns).map(([name, data]) => ({ name, data }));
  const path = join(folder, name);
  await writeFile(path, Buffer.from(parquetWriteBuffer({ columnData })));
  return path;
}

describe("Parquet files", () => {
  test("of structs { bytes, path } are sources of embed; rows are those of the files", async () => {
    const path = join(LISTS, "class_label.parquet");
    const found = await embed(path);
    const { rows } = await embed(...NAMES.map((name) => join(IMAGES, name)));
    expect(found).toMatchObject({ code: 0, stderr: "", images: [0, 1, 2, 3].map((row) => `${path}/${row}`) });
    expect(found.rows.map(({ embedding }) => embedding)).toEqual(rows.map(({ embedding }) => embedding));
    const parts = await Promise.all([0, 1].map((i) => embed(path, "--shard", `${i}/2`)));
    expect(parts.map(({ rows }) => rows)).toEqual([
      [found.rows[0], found.rows[2]],
      [found.rows[1], found.rows[3]],
    ]);
  });

  test("of plain bytes, under any name if there is one such column", async () => {
    const photo = await Promise.all(
      NAMES.map(async (name) => new Uint8Array(await readFile(join(IMAGES, name)))),
    );
    const path = await written("plain.parquet", { label: ["a", "b", "c", "d"], photo });
    const { rows } = await embed(join(LISTS, "class_label.parquet"));
    const found = await embed(path);
    expect(found.images).toEqual([0, 1, 2, 3].map((row) => `${path}/${row}`));
    expect(found.rows.map(({ embedding }) => embedding)).toEqual(rows.map(({ embedding }) => embedding));
    const image = photo.map(() => new Uint8Array([1]));
    const several = await written("several.parquet", { photo, image });
    expect((await embed(several)).stderr).toMatch(/several\.parquet\/0 .*\[INVALID_IMAGE\]/);
    const unclear = await written("unclear.parquet", { photo, other: image });
    expect(await embed(unclear)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /unclear\.parquet has several columns of bytes, photo, other; call .* "image"\. \[INVALID_ARGUMENT\]\n$/,
      ),
    });
  });

  test("are found by globs and lists, but not in folders, where outputs are", async () => {
    const data = await mkdtemp(join(folder, "data-"));
    await copyFile(join(LISTS, "class_label.parquet"), join(data, "a.parquet"));
    await copyFile(join(IMAGES, "8-bag.png"), join(data, "b.png"));
    const list = join(data, "list.txt");
    await writeFile(list, join(data, "a.parquet"));
    expect((await embed(join(data, "*.parquet"))).images).toHaveLength(4);
    expect((await embed("--list", list)).images).toHaveLength(4);
    const found = await embed(data);
    expect(found.images).toEqual([join(data, "b.png")]);
    expect(found.stderr).toBe("vit-msn: skipped 2 files that are not images: .parquet 1, .txt 1.\n");
  });

  test("a row without bytes fails alone", async () => {
    const path = join(LISTS, "paths.parquet");
    const { code, stderr } = await embed(path);
    expect(code).toBe(1);
    const errors = stderr.trim().split("\n");
    expect(errors).toHaveLength(4);
    expect(errors[0]).toMatch(
      /paths\.parquet\/0: image has no bytes, only the path 1-trouser\.png; .*\[INVALID_ARGUMENT\]$/,
    );
    expect(errors[3]).toMatch(/paths\.parquet\/3: image has neither bytes nor a path/);
  });

  test.each<[string, () => Promise<string>, RegExp]>([
    [
      "without images",
      () => written("text.parquet", { image: ["a.png"] }),
      /text\.parquet has no column of images.* among image; pass files .*--list\. \[INVALID_ARGUMENT\]$/,
    ],
    [
      "cut off",
      async () => {
        const bytes = await readFile(join(LISTS, "class_label.parquet"));
        await writeFile(join(folder, "cut.parquet"), bytes.subarray(0, 3000));
        return join(folder, "cut.parquet");
      },
      /cut\.parquet can't be read as a Parquet file: .*\[INVALID_ARGUMENT\]$/,
    ],
    [
      "with damaged pages",
      async () => {
        const bytes = await readFile(join(LISTS, "class_label.parquet"));
        await writeFile(join(folder, "hit.parquet"), bytes.fill(255, 4, 400));
        return join(folder, "hit.parquet");
      },
      /hit\.parquet can't be read as a Parquet file: .*\[INVALID_ARGUMENT\]$/,
    ],
    ["missing", async () => join(folder, "no.parquet"), /no file or folder .*no\.parquet.*\[NOT_FOUND\]$/],
  ])("a file %s is one error", async (_, make, message) => {
    const { code, stderr, images } = await embed(await make());
    expect([code, images]).toEqual([1, []]);
    expect(stderr.trim()).toMatch(message);
    expect(stderr.trim().split("\n")).toHaveLength(1);
  });
});
