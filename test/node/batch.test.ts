import { execFile } from "node:child_process";
import { once } from "node:events";
import {
  copyFile,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { buffer } from "node:stream/consumers";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { parse as parse_npy } from "npyjs";
import { pack } from "tar-stream";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ArrowColumn, arrow_schema } from "../../ts/cli/batch/arrow_schema.ts";
import { prefetch } from "../../ts/cli/batch/prefetch.ts";
import { type Computation, run_batches, type Sink } from "../../ts/cli/batch/run_batches.ts";
import type { Selected } from "../../ts/cli/batch/selection.ts";
import { walk, walk_glob } from "../../ts/cli/batch/walk.ts";
import { SkippedFiles } from "../../ts/files/skipped_files.ts";
import { sorted_entries } from "../../ts/files/walk.ts";
import { RawImage } from "../../ts/index.ts";
import { type Finished, root, start, vit_msn } from "../support/cli.ts";

// `embed` and `classify` over many images: sources, outputs, shards, and resuming after a kill.

const IMAGES = join(root, "models/fashion/pictures");
/** A model that takes a millisecond an image. */
const TINY = ["--model", "test/fixtures/tiny"];

let folder: string;
let samples: Buffer[];
const SHARD_IMAGES = 300;
/** A tar shard of 300 members, some of which are not images. */
let shard: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-batch-"));
  const names = (await readdir(IMAGES)).sort();
  samples = await Promise.all(names.map((name) => readFile(join(IMAGES, name))));
  shard = join(folder, "shard.tar");
  await writeFile(
    shard,
    await make_shard(SHARD_IMAGES, (i) => (i % 50 === 49 ? Buffer.from("<html>") : sample(i))),
  );
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function sample(i: number): Buffer {
  return samples[i % samples.length] as Buffer;
}

/** A webdataset: each sample's files have its key as their name. */
async function make_shard(count: number, bytes_of: (i: number) => Buffer): Promise<Buffer> {
  const tar = pack();
  for (let i = 0; i < count; i++) {
    const key = String(i).padStart(6, "0");
    tar.entry({ name: `${key}.png` }, bytes_of(i));
    tar.entry({ name: `${key}.json` }, `{"key":${i}}`);
  }
  tar.finalize();
  return buffer(tar);
}

function json_lines<T>(text: string): T[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as T);
}

interface Embedded {
  image: string;
  embedding: number[];
}

const images_of = (text: string) => json_lines<Embedded>(text).map(({ image }) => image);

/** Serves what `answer` says, at 127.0.0.1. */
async function serve(answer: (request: IncomingMessage, response: ServerResponse) => void) {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close: () => server.close() };
}

describe("sources", () => {
  test("folders with their subfolders, shards in them, globs and lists are read in one order", async () => {
    const data = join(folder, "data");
    await mkdir(join(data, "b/deeper"), { recursive: true });
    for (const [i, name] of [
      "c.png",
      "a.PNG",
      "b/2.png",
      "b/1.png",
      "b/deeper/x.png",
      ".hidden.png",
    ].entries())
      await writeFile(join(data, name), sample(i));
    await writeFile(join(data, "notes.txt"), "not an image");
    await writeFile(join(data, "d.tar.gz"), gzipSync(await make_shard(2, sample)));
    await symlink(data, join(data, "e-loop"));
    const list = join(folder, "list.txt");
    await writeFile(list, `${data}/c.png\r\n\n${data}/b\n`);
    const { code, stdout } = await vit_msn(["embed", data, `${data}/**/[12].png`, "--list", list, ...TINY]);
    expect(code).toBe(0);
    const below = ["a.PNG", "b/1.png", "b/2.png", "b/deeper/x.png", "c.png"];
    const members = ["d.tar.gz/000000.png", "d.tar.gz/000001.png"];
    const matched = ["b/1.png", "b/2.png"];
    const listed = ["c.png", "b/1.png", "b/2.png", "b/deeper/x.png"];
    expect(images_of(stdout)).toEqual(
      [...below, ...members, ...matched, ...listed].map((name) => join(data, name)),
    );
  });

  test("a list comes from standard input; batches, prefetching and threads change no bit", async () => {
    const stdin = (await readdir(IMAGES)).map((name) => join(IMAGES, name)).join("\n");
    const [alone, together] = await Promise.all([
      vit_msn(["embed", "--list", "-"], { stdin }),
      vit_msn(["embed", "--list", "-", "--batch-size", "4", "--num-threads", "2"], { stdin }),
    ]);
    expect([alone.code, alone.stderr]).toEqual([0, ""]);
    expect(images_of(alone.stdout)).toHaveLength(10);
    expect(together.stdout).toBe(alone.stdout);
  });

  test("a reader that closes the pipe ends the run without a message", async () => {
    const cli = `"${process.execPath}" dist/cli.js embed "${shard}" ${TINY.join(" ")}`;
    const options = { cwd: root };
    const read = promisify(execFile)("bash", ["-c", `${cli} | head -n 1; echo "\${PIPESTATUS[0]}"`], options);
    const { stdout, stderr } = await read;
    const [first, code] = stdout.split("\n") as [string, string];
    expect([images_of(first), code, stderr]).toEqual([[`${shard}/000000.png`], "141", ""]);
  });

  test("shards that are cut off, damaged, empty or missing fail after what could be read", async () => {
    const whole = await make_shard(4, sample);
    const sources = {
      "cut.tar": whole.subarray(0, 2000),
      "cut.tar.gz": gzipSync(whole).subarray(0, -200),
      "noise.tar": Buffer.alloc(4096, 37),
      "text.tgz": Buffer.from("hello"),
      "empty.tar": Buffer.alloc(0),
    };
    for (const [name, bytes] of Object.entries(sources)) await writeFile(join(folder, name), bytes);
    const paths = [...Object.keys(sources), "missing.tar", "no-such-folder/*.png"].map((name) =>
      join(folder, name),
    );
    const { code, stdout, stderr } = await vit_msn(["embed", ...paths, `${IMAGES}/8-bag.png`, ...TINY]);
    expect(code).toBe(1);
    const failures = stderr.trim().split("\n");
    // The last line counts the .json members.
    expect(failures).toHaveLength(paths.length + 1);
    expect(failures.at(-1)).toMatch(/^vit-msn: skipped \d+ files that are not images: \.json \d+\.$/);
    for (const [i, path] of paths.entries()) expect(failures[i]).toContain(basename(path));
    expect(stderr).not.toContain("unexpected error");
    const images = images_of(stdout);
    expect(images.at(-1)).toBe(`${IMAGES}/8-bag.png`);
    expect(images[0]).toBe(join(folder, "cut.tar/000000.png"));
  });

  test("URLs are retried when that may help", async () => {
    const asked = new Map<string, number>();
    const server = await serve(({ url = "" }, response) => {
      const tries = (asked.get(url) ?? 0) + 1;
      asked.set(url, tries);
      if (url === "/gone.png") response.writeHead(404).end();
      else if (url === "/busy.png" && tries === 1) response.writeHead(429, { "retry-after": "1" }).end();
      else if (url === "/broken.png" && tries <= 2) response.writeHead(503).end();
      else if (url === "/cut.png" && tries === 1)
        response.writeHead(200, { "content-length": 5000 }).end("x");
      else if (url === "/silent.png" && tries === 1) response.writeHead(200).write("x");
      else response.end(sample(0));
    });
    const names = ["gone", "busy", "broken", "cut", "silent"].map((name) => `${server.url}/${name}.png`);
    const result = await vit_msn(["embed", "--list", "-", "--timeout", "3", ...TINY], {
      stdin: names.join("\n"),
    });
    server.close();
    expect(result.stderr).toMatch(
      /^vit-msn: .*gone\.png can't be fetched: the server answered 404.*\[NOT_FOUND\]\n$/,
    );
    expect(images_of(result.stdout)).toEqual(names.slice(1));
    expect(Object.fromEntries(asked)).toEqual({
      "/gone.png": 1,
      "/busy.png": 2,
      "/broken.png": 3,
      "/cut.png": 2,
      "/silent.png": 2,
    });
  });

  test("a remote shard that breaks off is resumed; one that stays away ends the run, which can be resumed", async () => {
    const bytes = await make_shard(6, sample);
    let tries = 0;
    const server = await serve(({ url }, response) => {
      if (url !== "/a.tar") return response.writeHead(503).end();
      if (++tries > 1) return response.end(bytes);
      response.writeHead(200, { "content-length": bytes.length });
      response.write(bytes.subarray(0, 7000), () => response.destroy());
    });
    const options = [...TINY, "--retries", "1"];
    const whole = await vit_msn(["embed", `${server.url}/a.tar?signature=x`, ...options]);
    expect(tries).toBe(0);
    expect(whole.code).toBe(1);
    const broken = await vit_msn(["embed", `${server.url}/a.tar`, ...options]);
    expect([broken.code, broken.stderr]).toEqual([
      0,
      "vit-msn: skipped 6 files that are not images: .json 6.\n",
    ]);
    expect(images_of(broken.stdout)).toEqual(
      Array.from({ length: 6 }, (_, i) => `${server.url}/a.tar/00000${i}.png`),
    );
    expect(tries).toBe(2);
    const away = await vit_msn(["embed", `${IMAGES}/8-bag.png`, `${server.url}/away.tar`, ...options]);
    server.close();
    expect(away.code).toBe(1);
    expect(away.stderr).toMatch(/away\.tar can't be fetched: the server answered 503.*\[NETWORK\]/);
    expect(images_of(away.stdout)).toHaveLength(1);
  });

  test("a folder's names are sorted, packed from any number of them", async () => {
    const names = Array.from({ length: 55 }, (_, i) => `n${(i * 31) % 55}`);
    const many = join(folder, "many");
    await mkdir(join(many, "n7 folder"), { recursive: true });
    await symlink("n7", join(many, "ü link"));
    await Promise.all(names.map((name) => writeFile(join(many, name), "")));
    for (const held of [1, 7, 56, 57, 58, 1000]) {
      const sorted: [string, boolean | undefined][] = [];
      for await (const { name, is_folder } of sorted_entries(many, held)) sorted.push([name, is_folder]);
      const all = [...names, "n7 folder", "ü link"].sort();
      expect(sorted.map(([name]) => name)).toEqual(all);
      for (const [name, is_folder] of sorted)
        expect(is_folder).toBe(name === "ü link" ? undefined : name === "n7 folder");
    }
  });

  test("a name that isn't UTF-8 survives the packing", async () => {
    if (process.platform !== "linux") return;
    const odd = join(folder, "odd names");
    await mkdir(odd);
    for (const name of ["a", "c"]) await writeFile(join(odd, name), "");
    await writeFile(Buffer.concat([Buffer.from(`${odd}/b`), Buffer.of(0xff)]), "");
    const sorted: string[] = [];
    for await (const { name } of sorted_entries(odd, 1)) sorted.push(name);
    expect(sorted).toEqual(["a", "b\udcff", "c"]);
  });

  test("globs", async () => {
    const tree = join(folder, "tree");
    await mkdir(join(tree, "x/y"), { recursive: true });
    for (const name of ["a1.png", "a2.png", "b1.jpg", "x/a1.png", "x/y/a1.png"])
      await writeFile(join(tree, name), "");
    const matches = async (glob: string) => {
      const found: string[] = [];
      for await (const path of walk_glob(`${tree}/${glob}`, new SkippedFiles()))
        found.push(path.slice(tree.length + 1));
      return found;
    };
    expect(await matches("*.png")).toEqual(["a1.png", "a2.png"]);
    expect(await matches("**/a1.png")).toEqual(["a1.png", "x/a1.png", "x/y/a1.png"]);
    expect(await matches("*/*.png")).toEqual(["x/a1.png"]);
    expect(await matches("{a,b}[1].*")).toEqual(["a1.png", "b1.jpg"]);
    expect(await matches("nothing*")).toEqual([]);
    const depth_one: string[] = [];
    for await (const path of walk(tree, new SkippedFiles(), { max_depth: 1 })) depth_one.push(basename(path));
    expect(depth_one).toEqual(["a1.png", "a2.png", "b1.jpg"]);
  });
});

describe("the memory of a run", () => {
  const MEGABYTE = 1_000_000;

  /** Runs over images of a size; gives the most bytes that were decoded and not prepared, and the most files in memory. */
  async function run(count: number, batch_size: number, width: number, height: number) {
    let [files, max_files, decoded, max_decoded, largest_batch] = [0, 0, 0, 0, 0];
    const selected = async function* (): AsyncGenerator<Selected> {
      for (let i = 0; i < count; i++)
        yield {
          name: `${i}`,
          reached: { position: i + 1, names_sha256: "" },
          read: async ({ admit }) => {
            max_files = Math.max(max_files, ++files);
            await new Promise(setImmediate);
            await admit?.({ format: "JPEG", mime: "", width, height });
            decoded += width * height * 3;
            max_decoded = Math.max(max_decoded, decoded);
            await new Promise(setImmediate);
            return new RawImage(new Uint8Array(3), 1, 1, 3);
          },
        };
    };
    const computation: Computation = {
      prepare: async (image) => {
        for (let i = 0; i < 3; i++) await new Promise(setImmediate);
        decoded -= width * height * 3;
        files--;
        return image;
      },
      compute: async (images) => {
        largest_batch = Math.max(largest_batch, images.length);
        await new Promise(setImmediate);
        return images.map(() => ({ values: [1] }));
      },
    };
    let written = 0;
    const sink: Sink = {
      write: async (outcomes) => {
        written += outcomes.length;
      },
    };
    const { signal } = new AbortController();
    await run_batches(selected(), computation, sink, { batch_size, stop_on_error: false, signal });
    return { written, max_files, max_decoded, largest_batch };
  }

  test.each([1, 8, 64])("doesn't grow with the batch: %i images of 12 megapixels", async (batch_size) => {
    const { written, max_files, max_decoded, largest_batch } = await run(100, batch_size, 4000, 3000);
    expect([written, largest_batch]).toEqual([100, batch_size]);
    expect(max_files).toBeLessThanOrEqual(8);
    expect(max_decoded).toBeLessThan(150 * MEGABYTE);
  });

  test("doesn't grow with the images' size, and one that exceeds the budget is decoded alone", async () => {
    expect((await run(20, 8, 8000, 6000)).max_decoded).toBe(144 * MEGABYTE);
    expect((await run(5, 8, 13_000, 13_000)).max_decoded).toBe(507 * MEGABYTE);
  });

  test("batches of images that stay large are smaller", async () => {
    const images = 12;
    const batches: number[] = [];
    const selected = async function* (): AsyncGenerator<Selected> {
      for (let i = 0; i < images; i++)
        yield {
          name: `${i}`,
          reached: { position: i + 1, names_sha256: "" },
          read: async () => new RawImage(new Uint8Array(30 * MEGABYTE), 10_000, 1000, 3),
        };
    };
    const computation: Computation = {
      prepare: async (image) => image,
      compute: async (batch) => {
        batches.push(batch.length);
        return batch.map(() => ({ values: [1] }));
      },
    };
    const { signal } = new AbortController();
    const options = { batch_size: images, stop_on_error: false, signal };
    await run_batches(selected(), computation, { write: async () => {} }, options);
    expect(batches).toEqual([3, 3, 3, 3]);
  });
});

describe("prefetch", () => {
  const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  const numbers = async function* (count: number) {
    for (let i = 0; i < count; i++) yield i;
  };

  test("works ahead within its limits, and gives results in order", async () => {
    let [running, max_running, weight, max_weight_seen] = [0, 0, 0, 0];
    const work = async (i: number) => {
      max_running = Math.max(max_running, ++running);
      await wait((i * 7) % 5);
      running--;
      weight += 10;
      max_weight_seen = Math.max(max_weight_seen, weight);
      return i;
    };
    const results: number[] = [];
    for await (const i of prefetch(numbers(40), work, {
      limit: 6,
      max_running: 4,
      max_weight: 30,
      weight: () => 10,
    })) {
      weight -= 10;
      results.push(i);
      await wait(1);
    }
    expect(results).toEqual(Array.from({ length: 40 }, (_, i) => i));
    expect(max_running).toBeGreaterThan(1);
    expect(max_running).toBeLessThanOrEqual(4);
    // What was already under way when the weight was reached may come on top.
    expect(max_weight_seen).toBeLessThanOrEqual(30 + 60);
  });

  test("an error comes in its place; leaving the loop early ends the source", async () => {
    let ended = false;
    const source = async function* () {
      try {
        yield* numbers(100);
      } finally {
        ended = true;
      }
    };
    const work = async (i: number) => {
      if (i === 3) throw new Error("three");
      return i;
    };
    const seen: number[] = [];
    const run = async () => {
      for await (const i of prefetch(source(), work, {
        limit: 4,
        max_running: 4,
        max_weight: 1,
        weight: () => 0,
      }))
        seen.push(i);
    };
    await expect(run()).rejects.toThrow("three");
    expect([seen, ended]).toEqual([[0, 1, 2], true]);
  });
});

describe("outputs", () => {
  test("JSONL, Parquet, CSV and NumPy hold the same rows, in order; failures are listed", async () => {
    const outputs = ["o.jsonl", "o.parquet", "o.npy", "o.npz", "o.csv"].map((name) =>
      join(folder, "out", name),
    );
    for (const output of outputs) {
      const { code, stderr } = await vit_msn([
        "embed",
        shard,
        "--output",
        output,
        "--batch-size",
        "7",
        ...TINY,
      ]);
      expect([code, stderr.trim().split("\n").at(-1)]).toEqual([
        3,
        `vit-msn: wrote ${output}: 294 images, and 6 failed (listed in ${output}.errors.jsonl).`,
      ]);
    }
    const [jsonl, parquet, npy, npz, csv] = outputs as [string, string, string, string, string];
    const rows = json_lines<Embedded>(await readFile(jsonl, "utf8"));
    expect(rows).toHaveLength(294);
    expect(rows[49]?.image).toBe(`${shard}/000050.png`);

    const file = await asyncBufferFromFile(parquet);
    expect(await parquetReadObjects({ file })).toEqual(rows);
    const { key_value_metadata = [], created_by } = await parquetMetadataAsync(file);
    const { "ARROW:schema": arrow, ...described } = Object.fromEntries(
      key_value_metadata.map(({ key, value = "" }) => [key, value]),
    );
    const about = Object.fromEntries(
      Object.entries(described).map(([key, value]) => [key, JSON.parse(value)]),
    );
    const metadata = Object.entries(described).map(([key, value]) => ({ key, value }));
    const columns: ArrowColumn[] = [
      { name: "image", type: "utf8" },
      { name: "embedding", type: "float32", list_size: 48 },
    ];
    expect(arrow).toBe(arrow_schema(columns, metadata));
    expect(about).toEqual({
      "vit_msn.command": "embed",
      "vit_msn.model": TINY[1],
      "vit_msn.revision": "main",
      "vit_msn.dtype": "float32",
      "vit_msn.attn": "sdpa",
      "vit_msn.pool": "cls",
    });
    expect(created_by).toMatch(/^vit-msn \d/);

    const [header, ...lines] = (await readFile(csv, "utf8")).trimEnd().split("\n");
    expect(header?.split(",").slice(0, 3)).toEqual(["image", "embedding_0", "embedding_1"]);
    expect(
      lines.map((line) => {
        const [image, ...values] = line.split(",");
        return { image, embedding: values.map((value) => Math.fround(Number(value))) };
      }),
    ).toEqual(rows.map(({ image, embedding }) => ({ image, embedding: embedding.map(Math.fround) })));

    const array = parse_npy(new Uint8Array(await readFile(npy)).buffer);
    expect([array.shape, array.dtype, array.fortranOrder]).toEqual([[294, 48], "f4", false]);
    expect(Array.from(array.data as Float32Array)).toEqual(rows.flatMap(({ embedding }) => embedding));
    const names = json_lines<string>(await readFile(`${npy}.images.jsonl`, "utf8"));
    expect(names).toEqual(rows.map(({ image }) => image));

    expect((await readFile(npz)).subarray(0, 4).toString("latin1")).toBe("PK\x03\x04");
    const failures = json_lines<{ image: string; code: string }>(
      await readFile(`${jsonl}.errors.jsonl`, "utf8"),
    );
    expect(failures.map(({ image, code }) => [basename(image), code])).toEqual(
      [49, 99, 149, 199, 249, 299].map((i) => [`${String(i).padStart(6, "0")}.png`, "INVALID_IMAGE"]),
    );
    expect((await readdir(join(folder, "out"))).filter((name) => /part|tmp/.test(name))).toEqual([]);
  });

  test("names and labels are quoted in CSV where it needs that", async () => {
    const data = join(folder, "quoting");
    await mkdir(data);
    await writeFile(join(data, 'a, "b".png'), sample(1));
    const output = join(folder, "quoting.csv");
    const { code } = await vit_msn(["classify", data, "--top_k", "2", "--output", output, "--quiet"]);
    expect(code).toBe(0);
    const [header, line] = (await readFile(output, "utf8")).split("\n");
    expect(header).toBe("image,label_1,score_1,label_2,score_2");
    expect(line?.startsWith(`"${join(data, 'a, ""b"".png')}",`)).toBe(true);
    expect(line?.slice(line.lastIndexOf('",') + 2).split(",")).toHaveLength(4);
  });

  test("classes go to JSONL, Parquet and .npz, but not to .npy", async () => {
    const [jsonl, parquet] = [join(folder, "c.jsonl"), join(folder, "c.parquet")];
    for (const output of [jsonl, parquet]) {
      const { code } = await vit_msn(["classify", IMAGES, "--top-k", "2", "--output", output, "--quiet"]);
      expect(code).toBe(0);
    }
    type Classified = { image: string; results: { label: string; score: number }[] };
    const rows = json_lines<Classified>(await readFile(jsonl, "utf8"));
    expect(rows[9]?.results.map(({ label }) => label)).toEqual(["Ankle boot", "Sneaker"]);
    const file = await asyncBufferFromFile(parquet);
    expect(await parquetReadObjects({ file })).toEqual(
      rows.map(({ image, results }) => ({
        image,
        labels: results.map(({ label }) => label),
        scores: results.map(({ score }) => Math.fround(score)),
      })),
    );
    const refused = await vit_msn(["classify", IMAGES, "--output", join(folder, "c.npy")]);
    expect([refused.code, refused.stderr]).toEqual([
      2,
      expect.stringContaining(".npy files can't hold labels"),
    ]);
  });

  test("--on-error stop ends at the first failure; the same command resumes once it is fixed", async () => {
    const data = join(folder, "fixed");
    await mkdir(data);
    for (let i = 0; i < 5; i++) await writeFile(join(data, `${i}.png`), i === 3 ? "broken" : sample(i));
    const command = ["embed", data, "--output", join(folder, "fixed.jsonl"), ...TINY];
    const stopped = await vit_msn([...command, "--on-error", "stop"]);
    expect(stopped.code).toBe(1);
    expect(stopped.stderr).toMatch(/stopped after 3 images; run the same command again to resume/);
    expect(stopped.stderr).toMatch(/3\.png.*\[INVALID_IMAGE\]/);
    await writeFile(join(data, "3.png"), sample(3));
    const finished = await vit_msn([...command, "--on-error", "stop"]);
    expect(finished.code).toBe(0);
    const images = images_of(await readFile(join(folder, "fixed.jsonl"), "utf8"));
    expect(images.map((name) => basename(name))).toEqual(["0.png", "1.png", "2.png", "3.png", "4.png"]);
  });

  test.each([
    [[], /no images/],
    [["-", "--list", "-"], /only once/],
    [["a.png", "--output", "rows.txt"], /can't tell a format/],
    [["a.png", "--format", "jsonl"], /require --output/],
    [["a.png", "--shard", "4/4"], /i from 0 to n - 1/],
    [["a.png", "--batch-size", "0"], /positive integer/],
    [["a.png", "--on-error", "panic"], /skip, stop/],
  ])("%o is wrong usage", async (args, words) => {
    const { code, stdout, stderr } = await vit_msn(["embed", ...args]);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(words);
  });
});

/** Numbers that look random and are the same each time. */
function* pseudo_random(seed: number): Generator<number, never> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 32;
  }
}

/**
 * An image at a URL that nothing answers before release(): a run that asks for it can't end by itself, so that a signal always
 * comes in time.
 */
async function held_image() {
  let release = () => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  const server = await serve((_, response) => void released.then(() => response.end(sample(0))));
  return { url: `${server.url}/held.png`, release, close: server.close };
}

/**
 * Kills `kills` runs of a command whose last source is held: each when its journal has come to a position that the seed chooses
 * between those of the others. What exactly a run does then is left to chance. Then lets the last run come to its end.
 */
async function run_with_kills(
  command: string[],
  { output, release, kills, seed }: { output: string; release: () => void; kills: number; seed: number },
): Promise<void> {
  const random = pseudo_random(seed);
  for (let i = 0; i < kills; i++) {
    const target = ((i + random.next().value) / (kills + 1)) * SHARD_IMAGES;
    const run = start(command);
    await changed_journal(output, run.finished, target);
    run.kill("SIGKILL");
    expect((await run.finished).signal).toBe("SIGKILL");
  }
  release();
  expect((await vit_msn(command)).code).toBe(3);
}

/** Waits until a run saves progress, of at least `position` members, or ends. @throws where it ends first. */
async function changed_journal(output: string, finished: Promise<Finished>, position = 0): Promise<void> {
  const read = () => readFile(`${output}.journal.json`, "utf8").catch(() => "");
  const before = await read();
  let ended: Finished | undefined;
  finished.then((end) => {
    ended = end;
  });
  while (!ended) {
    const text = await read();
    if (text !== before && text !== "" && JSON.parse(text).position >= position) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`The run ended with ${ended.code} before it saved its progress: ${ended.stderr}`);
}

describe("resuming after an end of any kind", () => {
  const command_of = (output: string, ...more_sources: string[]) => [
    ...[
      "embed",
      shard,
      ...more_sources,
      "--output",
      output,
      "--save-every",
      "0",
      "--batch-size",
      "4",
      "--quiet",
    ],
    ...TINY,
  ];

  test.each(["jsonl", "parquet", "npz"])(
    "kill -9 at random moments leaves %s as an undisturbed run does",
    async (format) => {
      const [undisturbed, killed] = [join(folder, `whole.${format}`), join(folder, `killed.${format}`)];
      const { url, release, close } = await held_image();
      const seed = format.length;
      await run_with_kills(command_of(killed, url), { output: killed, release, kills: 3, seed });
      expect((await vit_msn(command_of(undisturbed, url))).code).toBe(3);
      close();
      expect((await readFile(killed)).equals(await readFile(undisturbed))).toBe(true);
      const failures = async (output: string) => readFile(`${output}.errors.jsonl`, "utf8");
      expect(await failures(killed)).toBe(await failures(undisturbed));
    },
  );

  test("what a killed run wrote beyond its journal is cut off", async () => {
    const output = join(folder, "beyond.jsonl");
    await vit_msn(command_of(output));
    const whole = await readFile(output);
    const journal = JSON.parse(await readFile(`${output}.journal.json`, "utf8"));
    // As if killed after the hundredth row was saved, and others were half written.
    const rows = whole.toString().split("\n").slice(0, 98);
    const text = `${rows.join("\n")}\n`;
    const { createHash } = await import("node:crypto");
    const sha256 = (content: string) => createHash("sha256").update(content).digest("hex");
    const names = Array.from({ length: 100 }, (_, i) => `${shard}/${String(i).padStart(6, "0")}.png\n`);
    const names_sha256 = sha256(names.join(""));
    const errors = json_lines(await readFile(`${output}.errors.jsonl`, "utf8")).slice(0, 2);
    const error_text = errors.map((error) => `${JSON.stringify(error)}\n`).join("");
    const counts = { position: 100, rows: 98, failures: 2 };
    const bytes = { row_bytes: text.length, failure_bytes: error_text.length };
    const hashes = { rows_sha256: sha256(text), failures_sha256: sha256(error_text) };
    const saved = { ...journal, ...counts, ...bytes, ...hashes, state: "running", names_sha256 };
    await writeFile(`${output}.journal.json`, JSON.stringify(saved));
    await writeFile(`${output}.part`, `${text}{"image":"half`);
    await writeFile(`${output}.errors.jsonl`, `${error_text}{`);
    await rm(output);
    expect((await vit_msn(command_of(output))).code).toBe(3);
    expect((await readFile(output)).equals(whole)).toBe(true);
  });

  test("a kill while the file is being finished loses nothing", async () => {
    for (const format of ["jsonl", "npy"]) {
      const output = join(folder, `finishing.${format}`);
      const part = join(folder, `part.${format}`);
      await vit_msn(command_of(output));
      const whole = await readFile(output);
      const journal = JSON.parse(await readFile(`${output}.journal.json`, "utf8"));
      const finishing = JSON.stringify({ ...journal, state: "finishing" });
      // Killed after the file got its name, and before the journal recorded it.
      await writeFile(`${output}.journal.json`, finishing);
      if (format === "jsonl") {
        expect((await vit_msn(command_of(output))).code).toBe(3);
        expect((await readFile(output)).equals(whole)).toBe(true);
        // Killed before it got its name.
        await writeFile(`${output}.journal.json`, finishing);
        await rename(output, `${output}.part`);
      } else {
        const rows = await spool_of(output, part);
        await writeFile(`${output}.part`, rows);
        await rm(output);
      }
      expect((await vit_msn(command_of(output))).code).toBe(3);
      expect((await readFile(output)).equals(whole)).toBe(true);
    }
  });

  /** The rows as a run keeps them before it finishes: those of one that stops at the end of its sources. */
  async function spool_of(output: string, copy: string): Promise<Buffer> {
    const { encode_row } = await import("../../ts/cli/batch/rows.ts");
    const { data } = parse_npy(new Uint8Array(await readFile(output)).buffer);
    const names = json_lines<string>(await readFile(`${output}.images.jsonl`, "utf8"));
    const values = data as Float32Array;
    const rows = names.map((image, i) =>
      encode_row({ image, values: values.subarray(i * 48, (i + 1) * 48) }),
    );
    await writeFile(copy, Buffer.concat(rows));
    return readFile(copy);
  }

  test.each(["SIGINT", "SIGTERM"] as const)("%s stops cleanly and prints how to resume", async (name) => {
    const output = join(folder, `${name}.jsonl`);
    const held = await held_image();
    const command = command_of(output, held.url).filter((word) => word !== "--quiet");
    const run = start(command);
    await changed_journal(output, run.finished);
    run.kill(name);
    const { code, stderr } = await run.finished;
    expect(code).toBe(name === "SIGINT" ? 130 : 143);
    expect(stderr).toMatch(/stopped after \d+ images?.*; run the same command again to resume\.\n$/);
    held.release();
    expect((await vit_msn(command)).code).toBe(3);
    held.close();
    expect(images_of(await readFile(output, "utf8"))).toHaveLength(295);
  });

  test("a finished output is left alone; --restart starts over", async () => {
    const output = join(folder, "again.jsonl");
    const command = ["embed", IMAGES, "--output", output, ...TINY];
    expect((await vit_msn(command)).code).toBe(0);
    const finished = await readFile(output, "utf8");
    const again = await vit_msn(command);
    expect([again.code, again.stderr]).toEqual([0, `vit-msn: ${output} is complete: 10 images.\n`]);
    expect(await readFile(output, "utf8")).toBe(finished);
    expect((await vit_msn([...command, "--restart"])).code).toBe(0);
    expect(images_of(await readFile(output, "utf8"))).toHaveLength(10);
  });

  test("changed options, sources and weights are noticed", async () => {
    const [output, data, model] = ["changed.jsonl", "changing", "model"].map((name) =>
      join(folder, name),
    ) as [string, string, string];
    await mkdir(data);
    await mkdir(model);
    for (const name of ["config.json", "model.safetensors", "preprocessor_config.json"])
      await copyFile(join(root, "test/fixtures/tiny", name), join(model, name));
    for (let i = 0; i < 4; i++) await writeFile(join(data, `${i}.png`), i === 3 ? "broken" : sample(i));
    const command = ["embed", data, "--model", model, "--output", output, "--on-error", "stop"];
    expect((await vit_msn(command)).code).toBe(1);
    const refusals: [string[], RegExp][] = [
      [["--pool", "mean"], /pool was "cls" and is "mean"/],
      [["--dtype", "float16"], /dtype was "float32" and is "float16"/],
      [["--shard", "0/2"], /shard was "0\/1" and is "0\/2"/],
      [["--format", "npy"], /format was "jsonl" and is "npy"/],
      [[IMAGES], /sources was .*changing.* and is /],
    ];
    for (const [options, words] of refusals) {
      const { code, stderr } = await vit_msn([...command, ...options]);
      expect([code, stderr]).toEqual([1, expect.stringMatching(words)]);
    }
    await rename(join(data, "1.png"), join(data, "10.png"));
    expect((await vit_msn(command)).stderr).toMatch(/the first 3 images of the sources have changed/);
    for (const name of ["0.png", "10.png"]) await rm(join(data, name));
    expect((await vit_msn(command)).stderr).toMatch(/the first 3 images of the sources only 2 are left/);
    for (const i of [0, 1]) await writeFile(join(data, `${i}.png`), sample(i));
    const weights = await readFile(join(model, "model.safetensors"));
    for (let at = weights.length - 4096; at < weights.length; at += 4) weights.writeFloatLE(0.5, at);
    await writeFile(join(model, "model.safetensors"), weights);
    expect((await vit_msn(command)).stderr).toMatch(/the same name but different weights/);
  });

  test("an output that no run made isn't overwritten, nor is one that is shorter than its journal records", async () => {
    const output = join(folder, "foreign.jsonl");
    await writeFile(output, "precious");
    const command = ["embed", IMAGES, "--output", output, ...TINY];
    expect(await vit_msn(command)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("already exists"),
    });
    expect(await readFile(output, "utf8")).toBe("precious");
    expect((await vit_msn([...command, "--restart"])).code).toBe(0);
    const journal = JSON.parse(await readFile(`${output}.journal.json`, "utf8"));
    await writeFile(`${output}.journal.json`, JSON.stringify({ ...journal, state: "running" }));
    expect(await vit_msn(command)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("shorter than"),
    });
    await writeFile(`${output}.journal.json`, "{");
    expect(await vit_msn(command)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("isn't a valid journal"),
    });
  });

  test("a second run of the same output is refused while the first one lives, wherever temporary files go", async () => {
    const output = join(folder, "locked.jsonl");
    const temporary = join(folder, "t".repeat(130));
    await mkdir(temporary);
    const held = await held_image();
    const first = start(command_of(output, held.url));
    await changed_journal(output, first.finished);
    first.kill("SIGSTOP");
    const others = [folder, temporary, "/nowhere"].map((TMPDIR) =>
      vit_msn(command_of(output, held.url), { env: { TMPDIR } }),
    );
    const refused = await Promise.all(others);
    first.kill("SIGKILL");
    await first.finished;
    held.release();
    for (const { code, stderr } of refused)
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/locked\.jsonl is being written by another process, process \d+ on .*\[IO\]/),
      ]);
    // The lock of a process that was killed is nobody's; one of several that come together gets it.
    const together = await Promise.all(
      [1, 2, 3].map(() => vit_msn(command_of(output, held.url), { env: { TMPDIR: temporary } })),
    );
    const codes = together.map(({ code }) => code);
    expect(codes).toContain(3);
    for (const { code, stderr } of together) if (code !== 3) expect(stderr).toContain("another process");
    const whole = join(folder, "not-locked.jsonl");
    expect((await vit_msn(command_of(whole, held.url), { env: { TMPDIR: "/nowhere" } })).code).toBe(3);
    held.close();
    expect((await readFile(output)).equals(await readFile(whole))).toBe(true);
    expect((await readdir(folder)).filter((name) => name.startsWith("locked.jsonl"))).toEqual([
      "locked.jsonl",
      "locked.jsonl.errors.jsonl",
      "locked.jsonl.journal.json",
    ]);
  });

  test("an output by another name, through a link to it or to its folder, is the same output", async () => {
    const real = join(folder, "real");
    await mkdir(real);
    await symlink(real, join(folder, "linked"));
    const link = join(folder, "link.jsonl");
    await symlink("real/o.jsonl", link);
    const held = await held_image();
    const first = start(command_of(join(real, "o.jsonl"), held.url));
    await changed_journal(join(real, "o.jsonl"), first.finished);
    first.kill("SIGSTOP");
    const names = [link, join(folder, "linked/o.jsonl")];
    const refused = await Promise.all(names.map((name) => vit_msn(command_of(name, held.url))));
    first.kill("SIGKILL");
    await first.finished;
    for (const { code, stderr } of refused)
      expect([code, stderr]).toEqual([1, expect.stringContaining("another process")]);
    held.release();
    expect((await vit_msn(command_of(link, held.url))).code).toBe(3);
    held.close();
    expect(images_of(await readFile(join(real, "o.jsonl"), "utf8"))).toHaveLength(295);
    expect((await lstat(link)).isSymbolicLink()).toBe(true);
  });

  test("rows that were changed while no run was under way are noticed", async () => {
    const output = join(folder, "spoilt.parquet");
    const sources = [`${IMAGES}/8-bag.png`, join(folder, "never-there.png")];
    const command = ["embed", ...sources, "--output", output, "--on-error", "stop", ...TINY];
    expect((await vit_msn(command)).stderr).toContain("stopped after 1 image");
    const rows = await readFile(`${output}.part`);
    await writeFile(`${output}.part`, rows.fill(0, 8, 20));
    const { code, stderr } = await vit_msn(command);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/spoilt\.parquet\.part doesn't match its journal.*\[IO\]/),
    ]);
  });

  test("a damaged journal, a folder in the output's place and a file in its folder's place are errors", async () => {
    const output = join(folder, "journal.jsonl");
    const command = ["embed", IMAGES, "--output", output, ...TINY];
    expect((await vit_msn(command)).code).toBe(0);
    const journal = JSON.parse(await readFile(`${output}.journal.json`, "utf8"));
    const damages = [
      ...Object.keys(journal).flatMap((key) =>
        [null, -1, "x", {}, [null]].map((value) => ({ [key]: value })),
      ),
      ...["position", "rows_done"].map((key) => ({ retry: { [key]: 1 } })),
    ].filter((damage) => !("identity" in damage && JSON.stringify(damage.identity) === "{}"));
    const { read_journal } = await import("../../ts/cli/batch/journal.ts");
    for (const damage of damages) {
      await writeFile(`${output}.journal.json`, JSON.stringify({ ...journal, ...damage }));
      await expect(read_journal(`${output}.journal.json`), JSON.stringify(damage)).rejects.toMatchObject({
        code: "IO",
      });
    }
    await writeFile(`${output}.journal.json`, JSON.stringify({ ...journal, identity: null }));
    expect((await vit_msn(command)).stderr).toMatch(/isn't a valid journal of a run.*\[IO\]/);
    const below = await vit_msn(["embed", IMAGES, "--output", `${output}/o.jsonl`, ...TINY]);
    expect([below.code, below.stderr]).toEqual([
      1,
      expect.stringMatching(/o\.jsonl can't be written: .*\[IO\]/),
    ]);
    await mkdir(join(folder, "folder.jsonl"));
    const as_folder = await vit_msn(["embed", IMAGES, "--output", join(folder, "folder.jsonl"), ...TINY]);
    expect(as_folder.stderr).toMatch(/folder\.jsonl is a folder.*\[INVALID_ARGUMENT\]/);
  });
});

describe("retrying what failed", () => {
  test.each(["jsonl", "parquet", "npz"])(
    "the same command computes what failed, and nothing else: %s",
    async (format) => {
      let is_away = true;
      const asked: string[] = [];
      const server = await serve(({ url = "" }, response) => {
        asked.push(url);
        if (is_away && /[13]/.test(url)) response.writeHead(503).end();
        else response.end(sample(Number(/\d/.exec(url)?.[0])));
      });
      const list = join(folder, `urls-${format}.txt`);
      await writeFile(list, [0, 1, 2, 3, 4].map((i) => `${server.url}/${i}.png`).join("\n"));
      const command = (name: string) => [
        ...[
          "embed",
          "--list",
          list,
          "--retries",
          "0",
          "--output",
          join(folder, `${name}.${format}`),
          ...TINY,
        ],
      ];
      const first = await vit_msn(command("tried-again"));
      expect([first.code, first.stderr]).toEqual([3, expect.stringContaining("3 images, and 2 failed")]);
      const still = await vit_msn(command("tried-again"));
      expect([still.code, still.stderr]).toEqual([3, expect.stringContaining("3 images, and 2 failed")]);
      is_away = false;
      asked.length = 0;
      const second = await vit_msn(command("tried-again"));
      expect([second.code, second.stderr]).toEqual([0, expect.stringContaining("5 images")]);
      expect(asked).toEqual(["/1.png", "/3.png"]);
      asked.length = 0;
      expect((await vit_msn(command("tried-again"))).stderr).toMatch(/is complete: 5 images\.\n$/);
      expect(asked).toEqual([]);
      expect((await vit_msn(command("never"))).code).toBe(0);
      server.close();
      const [again, never] = ["tried-again", "never"].map((name) =>
        readFile(join(folder, `${name}.${format}`)),
      );
      expect((await again)?.equals((await never) as Buffer)).toBe(true);
      expect((await readdir(folder)).filter((name) => name.startsWith(`tried-again.${format}`))).toEqual([
        `tried-again.${format}`,
        `tried-again.${format}.journal.json`,
      ]);
    },
  );

  test("what changed in between isn't touched", async () => {
    const output = join(folder, "edited.jsonl");
    const missing = join(folder, "not-yet.png");
    const command = ["embed", missing, `${IMAGES}/8-bag.png`, "--output", output, ...TINY];
    expect((await vit_msn(command)).code).toBe(3);
    await writeFile(output, "mine now");
    await copyFile(join(IMAGES, "8-bag.png"), missing);
    const again = await vit_msn(command);
    expect([again.code, again.stderr]).toEqual([
      1,
      expect.stringMatching(/deleted or changed since.*\[IO\]/),
    ]);
    expect(await readFile(output, "utf8")).toBe("mine now");
  });

  test.each(["jsonl", "parquet", "npy", "npz"])(
    "a .%s that is gone or damaged isn't complete",
    async (format) => {
      const output = join(folder, `gone.${format}`);
      const command = ["embed", `${IMAGES}/8-bag.png`, "--output", output, ...TINY];
      expect((await vit_msn(command)).code).toBe(0);
      const bytes = await readFile(output);
      expect((await vit_msn(command)).code).toBe(0);
      const refusal = [
        1,
        expect.stringMatching(/deleted or changed since\. Start again with --restart\. \[IO\]/),
      ];
      const run_again = async () => {
        const { code, stderr } = await vit_msn(command);
        return [code, stderr];
      };
      await writeFile(output, bytes.subarray(0, -9));
      expect(await run_again()).toEqual(refusal);
      await writeFile(output, bytes.with(30, 1));
      expect(await run_again()).toEqual(refusal);
      await rm(output);
      expect(await run_again()).toEqual(refusal);
      expect((await vit_msn([...command, "--restart"])).code).toBe(0);
      expect(await readFile(output)).toEqual(bytes);
    },
  );
});

describe("long names", () => {
  test("a name that would make a .npz huge fails; in other formats it doesn't", async () => {
    const server = await serve((_, response) => response.end(sample(0)));
    const list = join(folder, "long-names.txt");
    await writeFile(list, `${server.url}/long.png?${"n".repeat(8000)}\n`);
    const command = (format: string) => [
      ...["embed", ...Array(30).fill(IMAGES), "--list", list, "--quiet"],
      ...["--output", join(folder, `long-name.${format}`), ...TINY],
    ];
    const npz = await vit_msn(command("npz"));
    expect([npz.code, npz.stderr.length < 1000]).toEqual([3, true]);
    expect(npz.stderr).toMatch(
      /The name .*\.\.\. has \d+ characters, more than this format's limit of 4096.*\[UNSUPPORTED\]/,
    );
    expect((await stat(join(folder, "long-name.npz"))).size).toBeLessThan(2_000_000);
    expect((await vit_msn(command("jsonl"))).code).toBe(0);
    server.close();
  });

  test("an error while a .npz is written ends the writing", async () => {
    const { write_npz } = await import("../../ts/cli/batch/numpy.ts");
    const rows = async function* () {
      yield { image: "a", values: [1] };
      if (++passes > 1) throw new Error("the rows end here");
    };
    let passes = 0;
    const path = join(folder, "broken.npz");
    await expect(write_npz(path, { rows, count: 2, width: 1, has_labels: false, about: {} })).rejects.toThrow(
      "end here",
    );
  });
});

describe("many machines, any length", () => {
  test("four shards, one of them killed and resumed, have every image exactly once", async () => {
    const output = (i: number) => join(folder, `shards/${i}.jsonl`);
    // The held image is the 311th, so that only the process that is killed asks for it.
    const held = await held_image();
    const sources = [shard, IMAGES, held.url];
    const command = (i: number) => [
      ...["embed", ...sources, "--shard", `${i}/4`, "--output", output(i), "--save-every", "0", "--quiet"],
      ...TINY,
    ];
    const runs = [0, 1, 2, 3].map((i) => start(command(i)));
    await changed_journal(output(2), (runs[2] as (typeof runs)[0]).finished);
    runs[2]?.kill("SIGKILL");
    const ends = await Promise.all(runs.map((run) => run.finished));
    expect(ends.map(({ signal }) => signal)).toEqual([null, null, "SIGKILL", null]);
    held.release();
    expect([0, 3]).toContain((await vit_msn(command(2))).code);
    const whole = await vit_msn(["embed", ...sources, ...TINY]);
    held.close();
    const texts = await Promise.all([0, 1, 2, 3].map((i) => readFile(output(i), "utf8")));
    const lines = texts.flatMap((text) => text.trim().split("\n"));
    expect(lines.sort()).toEqual(whole.stdout.trim().split("\n").sort());
    for (const text of texts) expect(images_of(text).length).toBeGreaterThan(70);
  });

  test("20,000 images pass through 48 MB of heap", async () => {
    const long = join(folder, "long.tar");
    // Decoding would take most of the time: one in twenty is an image.
    const junk = Buffer.from("<html>");
    await writeFile(long, await make_shard(20_000, (i) => (i % 20 === 0 ? sample(i) : junk)));
    const output = join(folder, "long.parquet");
    const command = ["embed", long, "--output", output, "--batch-size", "8", "--save-every", "1", ...TINY];
    const { code, stderr } = await vit_msn(command, { node: ["--max-old-space-size=48"] });
    expect([code, stderr.trim().split("\n").length]).toEqual([3, 19_002]);
    expect(stderr).toContain("1000 images, and 19000 failed");
  });

  test.each(["slurm.sh", "kubernetes.yaml"])("examples/jobs/%s runs as it is", async (name) => {
    const results = join(folder, name);
    const tools = join(results, "tools");
    await mkdir(tools, { recursive: true });
    const script = (text: string) => `#!/bin/sh\n${text}\n`;
    const cli = `exec "${process.execPath}" "${root}/dist/cli.js" "$@"`;
    const commands = { srun: 'exec "$@"', npx: `shift; ${cli}`, "vit-msn": cli };
    for (const [command, text] of Object.entries(commands))
      await writeFile(join(tools, command), script(text), { mode: 0o755 });
    const text = await readFile(join(root, "examples/jobs", name), "utf8");
    const job = name === "slurm.sh" ? text : command_of_yaml(text, shard, results);
    const run = (index: number) => {
      const slurm = {
        SLURM_ARRAY_TASK_ID: `${index}`,
        SLURM_ARRAY_TASK_COUNT: "16",
        SLURM_CPUS_PER_TASK: "1",
      };
      const paths = { DATA: shard, RESULTS: results, MODEL: "test/fixtures/tiny" };
      const PATH = `${tools}:${process.env.PATH}`;
      return promisify(execFile)("bash", ["-c", job], {
        cwd: root,
        env: { ...process.env, ...slurm, ...paths, JOB_COMPLETION_INDEX: `${index}`, PATH },
      });
    };
    // The first of these has an image that can't be read.
    for (const index of [1, 2]) await run(index);
    const parts = (await readdir(results)).filter((file) => file.endsWith(".parquet")).sort();
    const rows = await Promise.all(
      parts.map(async (part) => parquetReadObjects({ file: await asyncBufferFromFile(join(results, part)) })),
    );
    expect(rows.map((part) => part.length)).toEqual([18, 19]);
    expect(rows[1]?.[0]?.image).toBe(`${shard}/000002.png`);
  });

  /** The container's command, with this machine's paths. */
  function command_of_yaml(text: string, data: string, results: string): string {
    const block = /- \|\n((?: {14}.*\n)+)/.exec(text)?.[1] ?? "";
    return block
      .replaceAll("/data/images", data)
      .replaceAll("/results", results)
      .replace("facebook/vit-msn-small", "test/fixtures/tiny");
  }
});
