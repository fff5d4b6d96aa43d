import { chmod, mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { save_files } from "#save";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { write_safetensors } from "../../ts/loading/formats/write_safetensors.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import type { ProgressInfo } from "../../ts/loading/types.ts";
import { expect_error } from "../support/errors.ts";

/** The user id of an account without rights, on Linux and macOS. */
const NOBODY = 65534;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-test-"));
  await writeFile(join(folder, "config.json"), '{"hidden_size": 48}');
});
afterEach(() => rm(folder, { recursive: true, force: true }));

describe("a local folder", () => {
  test("is given by path, relative path or file: URL", async () => {
    for (const source of [
      folder,
      `${folder}/`,
      relative(".", folder),
      pathToFileURL(folder),
      pathToFileURL(folder).href,
    ]) {
      expect(await read_json(await open_source(source), "config.json")).toEqual({ hidden_size: 48 });
    }
  });

  test("lacks what isn't there, and refuses what is no file", async () => {
    const source = await open_source(folder);
    expect(await source.open("model.safetensors")).toBeUndefined();
    expect(await source.open("config.json/inside")).toBeUndefined();
    await mkdir(join(folder, "model.safetensors"));
    await expect_error(source.open("model.safetensors"), "IO", /isn't a file/);
  });

  test("may hold links to files elsewhere, as the hub's own cache does", async () => {
    await mkdir(join(folder, "snapshot"));
    await symlink("../config.json", join(folder, "snapshot", "config.json"));
    expect(await read_json(await open_source(join(folder, "snapshot")), "config.json")).toEqual({
      hidden_size: 48,
    });
    expect(await read_json(await open_source(folder, { subfolder: "snapshot/" }), "config.json")).toEqual({
      hidden_size: 48,
    });
  });

  test("that isn't there, or is a file, is a separate error", async () => {
    await expect_error(
      open_source(join(folder, "none")),
      "NOT_FOUND",
      /doesn't exist; pass an existing folder/,
    );
    await expect_error(open_source("./none"), "NOT_FOUND", /"\.\/none" doesn't exist/);
    await expect_error(open_source("../none"), "NOT_FOUND", /doesn't exist/);
    await expect_error(open_source("file:///none/at/all"), "NOT_FOUND", /doesn't exist/);
    await expect_error(open_source(""), "NOT_FOUND", /doesn't exist/);
    await expect_error(
      open_source(join(folder, "config.json")),
      "INVALID_ARGUMENT",
      /is a file; pass the folder/,
    );
    await expect_error(open_source("file://host/share"), "INVALID_ARGUMENT", /names no local folder/);
  });

  test("whose file may not be read is an error", async () => {
    await chmod(folder, 0o755);
    await chmod(join(folder, "config.json"), 0);
    const source = await open_source(folder);
    // root may read anything.
    const is_root = process.geteuid?.() === 0;
    if (is_root) process.seteuid?.(NOBODY);
    try {
      await expect_error(source.open("config.json"), "IO", /config\.json can't be opened/);
    } finally {
      if (is_root) process.seteuid?.(0);
    }
  });

  test("whose file shrinks while it is read is an error, not zeros", async () => {
    await writeFile(join(folder, "weights.bin"), Buffer.alloc(1000));
    const file = await (await open_source(folder)).open("weights.bin");
    expect((await file?.read(999, 1))?.byteLength).toBe(1);
    await expect_error(async () => file?.read(999, 2), "INVALID_CHECKPOINT", /ends early/);
    await truncate(join(folder, "weights.bin"), 10);
    await expect_error(async () => file?.read(0, 1000), "INVALID_CHECKPOINT", /ends early/);
    await file?.close();
  });
});

describe("saving", () => {
  const weights = () =>
    write_safetensors([{ key: "a", dtype: "float32", dims: [2], byte_length: 8, bytes: new Uint8Array(8) }]);

  test("makes the folder and gives a model that opens", async () => {
    const target = join(folder, "new", "model");
    const seen: ProgressInfo[] = [];
    await save_files(
      target,
      { "config.json": "{}", "model.safetensors": weights() },
      { progress_callback: (info) => seen.push(info) },
    );
    const checkpoint = await open_checkpoint(await open_source(target));
    expect(checkpoint.tensors.get("a")?.dims).toEqual([2]);
    await checkpoint.close();
    expect((await readdir(target)).sort()).toEqual(["config.json", "model.safetensors"]);
    expect(seen.filter(({ status }) => status === "done").map(({ file }) => file)).toEqual([
      "config.json",
      "model.safetensors",
    ]);
  });

  test("takes a file: URL", async () => {
    await save_files(pathToFileURL(join(folder, "a b")), { "config.json": "{}" });
    expect(await readFile(join(folder, "a b", "config.json"), "utf8")).toBe("{}");
  });

  test("that fails keeps what was there", async () => {
    async function* broken() {
      yield new Uint8Array(4);
      throw new RangeError("no more weights");
    }
    await expect(save_files(folder, { "config.json": "new", "model.safetensors": broken() })).rejects.toThrow(
      "no more weights",
    );
    const signal = AbortSignal.abort();
    await expect_error(save_files(folder, { "config.json": "new" }, { signal }), "ABORTED", /aborted/);
    expect(await readdir(folder)).toEqual(["config.json"]);
    expect(await readFile(join(folder, "config.json"), "utf8")).toBe('{"hidden_size": 48}');
  });

  test("refuses an impossible place", async () => {
    await expect_error(save_files(join(folder, "config.json"), { a: "" }), "IO", /can't be written/);
    await expect_error(save_files("", { a: "" }), "INVALID_ARGUMENT", /must be a path/);
    await expect_error(save_files({} as never, { a: "" }), "INVALID_ARGUMENT", /must be a path/);
    await expect_error(save_files(folder, { "../a": "" }), "INVALID_ARGUMENT", /plain relative path/);
  });
});
