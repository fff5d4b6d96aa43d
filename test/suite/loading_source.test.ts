import { expect, test } from "vitest";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import type { FileMap, ProgressInfo } from "../../ts/loading/types.ts";
import { expect_error } from "../support/errors.ts";
import { ascii } from "../support/torch_archive.ts";

async function text_of(files: FileMap, file: string, subfolder?: string): Promise<string | undefined> {
  const opened = await (await open_source(files, { subfolder })).open(file);
  return opened && new TextDecoder().decode(await opened.read(0, opened.size));
}

test("files are given as bytes, buffers or Blobs, in an object or a Map", async () => {
  const files = { a: ascii("A"), b: ascii("B").buffer, c: new Blob(["C"]) };
  expect(await text_of(files, "a")).toBe("A");
  expect(await text_of(files, "b")).toBe("B");
  expect(await text_of(new Map(Object.entries(files)), "c")).toBe("C");
  expect(await text_of(files, "d")).toBeUndefined();
  expect(await text_of(files, "toString")).toBeUndefined();
});

test("names may carry the folder that was picked", async () => {
  const files = { "mymodel/config.json": ascii("outer"), "mymodel/old/config.json": ascii("inner") };
  expect(await text_of(files, "config.json")).toBe("outer");
  expect(await text_of(files, "config.json", "old")).toBe("inner");
  expect(await text_of({ ...files, "config.json": ascii("exact") }, "config.json")).toBe("exact");
});

test("a file may be given by its URL, as bundlers name their assets", async () => {
  const source = await open_source({
    "config.json": new URL(`data:application/json;base64,${btoa('{"hidden_size": 48}')}`),
    "preprocessor_config.json": new URL("data:application/json,%7B%22do_resize%22%3A%20false%7D"),
  });
  expect(await read_json(source, "config.json")).toEqual({ hidden_size: 48 });
  expect(await read_json(source, "preprocessor_config.json")).toEqual({ do_resize: false });
  expect(await source.open("model.safetensors")).toBeUndefined();
});

test("two models in one map are an error", async () => {
  const files = { "a/config.json": ascii("1"), "b/config.json": ascii("2") };
  await expect_error(
    text_of(files, "config.json"),
    "INVALID_ARGUMENT",
    /2 files config.json \(a\/config.json, b\/config.json\)/,
  );
});

test("content of another kind is an error", async () => {
  await expect_error(
    text_of({ a: "text" } as unknown as FileMap, "a"),
    "INVALID_ARGUMENT",
    /a isn't any of these/,
  );
});

test("no weights at all lists what was looked for", async () => {
  const message =
    /none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json/;
  await expect_error(open_checkpoint(await open_source({})), "NOT_FOUND", message);
});

test("names and options can't leave the folder", async () => {
  const source = await open_source({ "../a": ascii("A") });
  for (const name of ["../a", "/a", "a/../../b", "", "a//b", "./a", "a\\b", "C:a", "a\0"]) {
    await expect_error(source.open(name), "INVALID_CHECKPOINT", /isn't a plain relative path/);
  }
  await expect_error(open_source("org/name", { subfolder: "../x" }), "INVALID_ARGUMENT", /subfolder/);
  await expect_error(open_source("org/name", { revision: "../../x" }), "INVALID_ARGUMENT", /revision/);
});

test.each(["not a model", "a/b/c", "", "org/", "data:text/plain,x", "ftp://host/x"])(
  "%j is no source",
  async (source) => {
    await expect(open_source(source)).rejects.toMatchObject({ name: "VitMsnError" });
  },
);

test("a progress callback is called for files in memory too", async () => {
  const seen: ProgressInfo[] = [];
  const source = await open_source({ a: ascii("abc") }, { progress_callback: (info) => seen.push(info) });
  await source.open("a");
  expect(seen.map(({ status }) => status)).toEqual(["initiate", "done"]);
  expect(seen[1]).toMatchObject({ file: "a", loaded: 3, total: 3, progress: 100 });
});

test("an aborted signal stops everything", async () => {
  const signal = AbortSignal.abort();
  const source = await open_source({ a: ascii("abc") }, { signal });
  await expect_error(source.open("a"), "ABORTED", /aborted/);
  await expect_error(open_checkpoint(await open_source({}), { signal }), "ABORTED", /aborted/);
});
