import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  constants,
  copyFile,
  mkdir,
  mkdtemp,
  open,
  readFile,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { list_images } from "../../ts/cli/batch/sources.ts";
import { json_for_stdout } from "../../ts/cli/terminal.ts";
import { root, start, vit_msn } from "../support/cli.ts";
import { skipped } from "../support/skips.ts";
import { pax_header, tar_header, tar_link, tar_member, tar_of } from "../support/tar.ts";

// What `embed` and `classify` are given: folders, lists and archives as they are found in the field.

const BOOT = join(root, "models/fashion/pictures/9-ankle-boot.png");
const TINY = ["--model", "test/fixtures/tiny"];

let folder: string;
let boot: Buffer;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-sources-"));
  boot = await readFile(BOOT);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

let count = 0;
async function new_folder(): Promise<string> {
  const path = join(folder, String(count++));
  await mkdir(path);
  return path;
}

async function embed(args: string[], stdin?: Uint8Array | string) {
  const { code, stdout, stderr } = await vit_msn(["embed", ...args, ...TINY], { stdin });
  const rows = stdout.split("\n").filter(Boolean);
  return { code, stderr, images: rows.map((row) => (JSON.parse(row) as { image: string }).image) };
}

/** Below `root`. */
const short = (images: string[], root: string) => images.map((image) => image.replace(`${root}/`, ""));

describe("folders", () => {
  test("what isn't an image is counted by extension; what systems add is ignored", async () => {
    const data = await new_folder();
    await mkdir(join(data, "__MACOSX"));
    await mkdir(join(data, "__old"));
    for (const name of ["a.png", "__MACOSX/._a.png", "__MACOSX/x.png", "__old/b.png"])
      await copyFile(BOOT, join(data, name));
    for (const name of ["b.HEIC", "c.heic", "notes.txt", "LICENSE", "Thumbs.db", "desktop.ini", ".DS_Store"])
      await writeFile(join(data, name), "x");
    const { code, stderr, images } = await embed([data, "--quiet"]);
    expect([code, short(images, data)]).toEqual([0, ["a.png"]]);
    expect(stderr).toBe(
      "vit-msn: skipped 4 files that are not images: .heic 2, without extension 1, .txt 1; " +
        `skipped folders whose names begin with "__" (1): ${join(data, "__old")}.\n`,
    );
  });

  test("links are followed, but not in a circle; one that leads nowhere is named", async () => {
    const [data, pool] = [await new_folder(), await new_folder()];
    await copyFile(BOOT, join(pool, "x.png"));
    await symlink(pool, join(data, "linked"));
    await symlink(join(pool, "x.png"), join(data, "a.png"));
    await symlink(data, join(data, "loop"));
    await symlink(data, join(pool, "back"));
    await symlink(join(pool, "gone.png"), join(data, "z.png"));
    const { code, stderr, images } = await embed([data]);
    expect([code, short(images, data)]).toEqual([1, ["a.png", "linked/x.png"]]);
    expect(stderr).toMatch(/^vit-msn: There is no file \S+\/z\.png; check the path\. \[NOT_FOUND\]\n$/);
  });

  test.skipIf(skipped(process.platform !== "linux", "only Linux's file names are any bytes"))(
    "names that aren't UTF-8 are read, and shown as escapes",
    async () => {
      const data = await new_folder();
      const inside = (name: string) => Buffer.concat([Buffer.from(`${data}/`), Buffer.from(name, "latin1")]);
      await mkdir(inside("caf\xe9"));
      await copyFile(BOOT, inside("caf\xe9/\xe9t\xe9.png"));
      await writeFile(inside("caf\xe9/bad\xff.png"), "<html>");
      const output = join(folder, "latin1.jsonl");
      const { code, stdout, stderr } = await vit_msn(["classify", data, "--top-k", "1"]);
      expect(code).toBe(1);
      expect(stdout).toContain("caf\\udce9/\\udce9t\\udce9.png");
      expect(stderr).toMatch(/caf\\udce9\/bad\\udcff\.png is an HTML page/);
      expect((await vit_msn(["embed", data, "--output", output, "--quiet", ...TINY])).code).toBe(3);
      const row = JSON.parse(await readFile(output, "utf8")) as { image: string };
      expect(row.image).toBe(join(data, "caf\udce9/\udce9t\udce9.png"));
      // A list may name it by its bytes.
      const list = join(folder, "latin1.txt");
      await writeFile(list, Buffer.concat([inside("caf\xe9/\xe9t\xe9.png"), Buffer.from("\n")]));
      expect((await embed(["--list", list])).images).toEqual([row.image]);
    },
  );

  test("the error of a folder without images names what it has", async () => {
    const data = await new_folder();
    await writeFile(join(data, "a.heic"), "x");
    const { code, stderr } = await embed([data]);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /contains no images .*\[NOT_FOUND\]\nvit-msn: skipped 1 file that is not an image: \.heic 1\.\n$/,
    );
  });
});

describe("lists", () => {
  const utf16 = (text: string, is_big: boolean) => {
    const bytes = Buffer.from(`\ufeff${text}`, "utf16le");
    return is_big ? bytes.swap16() : bytes;
  };

  test.each<[string, (a: string, b: string) => Uint8Array | string]>([
    ["with a byte order mark", (a, b) => `\ufeff${a}\n${b}`],
    ["in UTF-16, little-endian", (a, b) => utf16(`${a}\r\n${b}\r\n`, false)],
    ["in UTF-16, big-endian", (a, b) => utf16(`${a}\r\n${b}\r\n`, true)],
    ["in UTF-16 without a mark", (a, b) => utf16(`${a}\n${b}`, false).subarray(2)],
    ["whose names end in NUL", (a, b) => `${a}\0${b}\0`],
    ["with spaces around the names", (a, b) => `${a}  \n\t${b}\n`],
    ["with quotes", (a, b) => `"${a}"\n'${b}'\n`],
    ["with CRLF, CR and blank lines", (a, b) => `\r\n${a}\r\n\r\n  \r${b}\r`],
    ["with comments", (a, b) => `# my images\n${a}\n#x\n${b}\n`],
    ["of file: URLs", (a, b) => `${pathToFileURL(a)}\n ${pathToFileURL(b)} \n`],
  ])("%s", async (_, write) => {
    const data = await new_folder();
    const [a, b] = [join(data, "a ä.png"), join(data, "b.png")];
    for (const path of [a, b]) await copyFile(BOOT, path);
    const list = join(data, "list.txt");
    await writeFile(list, write(a, b));
    const { code, images } = await embed(["--list", list]);
    expect([code, images.length]).toEqual([0, 2]);
  });

  test("a name that exists exactly as written is taken, with its spaces, quotes and #", async () => {
    const data = await new_folder();
    const names = ["#1.png", ' "q".png', "end.png "].map((name) => join(data, name));
    for (const name of names) await copyFile(BOOT, name);
    await copyFile(BOOT, join(data, "end.png"));
    expect((await embed(["--list", "-"], names.join("\n"))).images).toEqual(names);
    expect((await embed(["--list", "-"], `${names[0]}\nline\nfeed.png\0`)).stderr).toContain(
      "line\\nfeed.png;",
    );
  });

  test("comments are counted; a line that is too long is a separate error", async () => {
    const { code, stderr, images } = await embed(["--list", "-"], `# one\n${"x".repeat(9000)}\n${BOOT}\n`);
    expect([code, images]).toEqual([1, [BOOT]]);
    expect(stderr).toMatch(
      /line 2 \(x{40}…\) has 9000 bytes, more than the limit of 8192.*\[INVALID_ARGUMENT\]/,
    );
    expect(stderr).toContain("skipped comment lines of lists (1)");
  });

  test.skipIf(skipped(process.platform !== "linux", "Linux has all these devices, pipes and sockets"))(
    "devices, pipes and sockets are refused; contents aren't quoted",
    async () => {
      const data = await new_folder();
      const pipe = join(data, "pipe.png");
      const shard = join(data, "pipe.tar");
      execFileSync("mkfifo", [pipe, shard]);
      const secret = join(data, "secret.txt");
      await writeFile(secret, "root:x:0:0");
      const server = createServer().listen(join(data, "socket.png"));
      await once(server, "listening");
      const lines = [
        "/dev/zero",
        "file:///dev/zero",
        pipe,
        shard,
        join(data, "socket.png"),
        "/proc/self/environ",
        secret,
      ];
      const { code, stderr, images } = await embed(["--list", "-"], lines.join("\n"));
      server.close();
      expect([code, images]).toEqual([1, []]);
      const errors = stderr.trim().split("\n");
      expect(errors.map((line) => /\[(\w+)\]$/.exec(line)?.[1])).toEqual([
        ...Array(5).fill("IO"),
        "INVALID_IMAGE",
        "INVALID_IMAGE",
      ]);
      expect(stderr).not.toContain("root:");
      // As a whole folder, too.
      expect((await embed([data])).stderr).toMatch(
        /pipe\.png can't be read: it is a device, pipe or socket.*\[IO\]/,
      );
    },
  );

  test
    .skipIf(skipped(process.platform === "win32", "Windows has no named pipes in its file system"))
    .each(["SIGINT", "SIGTERM"] as const)(
    "%s ends a command that waits for a pipe without a writer",
    async (name) => {
      const pipe = join(await new_folder(), "list");
      execFileSync("mkfifo", [pipe]);
      const run = start(["embed", BOOT, "--list", pipe, ...TINY]);
      // The first row shows that it has begun.
      await once(run.stdout as NodeJS.ReadableStream, "data");
      run.kill(name);
      const { code, signal } = await run.finished;
      expect([code ?? signal]).toEqual([signal ?? (name === "SIGINT" ? 130 : 143)]);
    },
  );

  test.each([
    ["embed", [...TINY]],
    ["few-shot", ["--json", "--teach"]],
  ])("SIGTERM ends %s while it waits for standard input", async (command, options) => {
    const classes = await new_folder();
    for (const name of ["boot", "shoe"]) {
      await mkdir(join(classes, name));
      await copyFile(BOOT, join(classes, name, "1.png"));
    }
    const teach = command === "few-shot" ? [classes] : [];
    const words = [join(root, "dist/cli.js"), command, BOOT, "-", ...options, ...teach];
    const run = spawn(process.execPath, words, { cwd: root, stdio: ["pipe", "pipe", "ignore"] });
    let rows = "";
    for await (const chunk of run.stdout) {
      rows += chunk;
      if (rows.includes(BOOT)) break;
    }
    run.kill("SIGTERM");
    expect(await once(run, "exit")).toEqual([143, null]);
    run.stdin.destroy();
  });

  test("an image may come through a pipe that the command line names", async () => {
    const pipe = join(await new_folder(), "image");
    if (process.platform === "win32") return;
    execFileSync("mkfifo", [pipe]);
    const run = embed([pipe]);
    await writeFile(pipe, boot);
    expect(await run).toMatchObject({ code: 0, images: [pipe] });
    // A pass that only counts opens nothing: there is no reader for a writer.
    const download = { retries: 0, timeout_ms: 1 };
    let counted = 0;
    for await (const _ of list_images({ paths: [pipe], lists: [], download }, new AbortController().signal))
      counted++;
    expect(counted).toBe(1);
    await expect(open(pipe, constants.O_WRONLY | constants.O_NONBLOCK)).rejects.toMatchObject({
      code: "ENXIO",
    });
  });
});

describe("a list that names no image is an error", () => {
  test.each([
    ["without bytes", ""],
    ["of blank lines", "\n  \r\n\t\n"],
    ["of a byte order mark", "\ufeff"],
    ["of comments", "# my images\n#x\n"],
  ])("%s", async (_, text) => {
    const list = join(await new_folder(), "list.txt");
    await writeFile(list, text);
    const { code, images, stderr } = await embed(["--list", list]);
    expect([code, images]).toEqual([1, []]);
    expect(stderr).toContain(`${list} contains no paths or URLs. [NOT_FOUND]`);
    const piped = await embed(["--list", "-"], text);
    expect(piped.code).toBe(1);
    expect(piped.stderr).toContain("The list on standard input contains no paths or URLs. [NOT_FOUND]");
  });
});

describe("schemes and archives that can't be read are named", () => {
  test.each(["s3://bucket/a.png", "gs://bucket/*.png", "hf://datasets/a/b.tar", "ftp://host/a.png"])(
    "%s",
    async (url) => {
      for (const args of [[url], ["--list", "-"]]) {
        const { code, stderr } = await embed(args, args.length > 1 ? url : undefined);
        expect([code, stderr]).toEqual([
          1,
          expect.stringMatching(/scheme \w+:\/\/ isn't supported.*\[UNSUPPORTED\]\n$/),
        ]);
      }
    },
  );

  test.each([
    ["x.tar.bz2", "BZh9", /bzip2.*bunzip2/],
    ["x.tar.xz", "\xfd7zXZ\0", /xz.*unxz/],
    ["x.tzst", "\x28\xb5\x2f\xfd", /Zstandard.*unzstd/],
  ])("%s", async (name, magic, message) => {
    const path = join(folder, name);
    await writeFile(path, Buffer.from(magic.padEnd(600, "x"), "latin1"));
    const misnamed = join(folder, `${name}.tar`);
    await copyFile(path, misnamed);
    const { code, stderr } = await embed([path, misnamed, `http://127.0.0.1:9/${name}`]);
    expect(code).toBe(1);
    const errors = stderr.trim().split("\n");
    expect(errors).toHaveLength(3);
    for (const error of errors) {
      expect(error).toMatch(message);
      expect(error).toMatch(/\[UNSUPPORTED\]$/);
    }
  });
});

test.each([
  ["x.zip", "PK\x03\x04", /ZIP archive.*pass it as a file whose name ends in \.zip\. \[UNSUPPORTED\]$/],
  ["x.parquet", "PAR1", /Parquet.*pass it as a file whose name ends in \.parquet\. \[UNSUPPORTED\]$/],
])("%s at a URL, or by the name of a tar shard, is named", async (name, magic, message) => {
  const misnamed = join(await new_folder(), "x.tar");
  await writeFile(misnamed, magic.padEnd(600, "x"));
  const { code, stderr } = await embed([misnamed, `http://127.0.0.1:9/${name}`]);
  expect(code).toBe(1);
  for (const error of stderr.trim().split("\n")) expect(error).toMatch(message);
});

describe("tar shards", () => {
  test("are recognised by their bytes, not by their names", async () => {
    const data = await new_folder();
    const tar = tar_of(tar_member("a.png", boot));
    await writeFile(join(data, "gzip.tar"), gzipSync(tar));
    await writeFile(join(data, "plain.tar.gz"), tar);
    expect(await embed([data])).toMatchObject({
      code: 0,
      stderr: "",
      images: [join(data, "gzip.tar/a.png"), join(data, "plain.tar.gz/a.png")],
    });
  });

  test("links are read, after the other members; what isn't an image is counted", async () => {
    const shard = join(await new_folder(), "a.tar");
    const tar = tar_of(
      tar_link("first.png", "deep/data.bin", "2"),
      tar_member("a.png", boot),
      tar_link("b.png", "./a.png", "1"),
      tar_link("deep/c.png", "../b.png", "2"),
      tar_member("deep/data.bin", boot),
      tar_link("lost.png", "gone.png", "1"),
      tar_header("device.png", 0, { type: "3" }),
      tar_member("a.json", Buffer.from("{}")),
    );
    for (const bytes of [tar, gzipSync(tar)]) {
      await writeFile(shard, bytes);
      const { code, stderr, images } = await embed([shard]);
      expect([code, short(images, shard)]).toEqual([1, ["a.png", "b.png", "deep/c.png", "first.png"]]);
      expect(stderr).toMatch(/lost\.png is a link to gone\.png, which isn't in the shard.*\[NOT_FOUND\]/);
      expect(stderr).toContain(
        "skipped 2 files that are not images: .bin 1, .json 1; skipped members of shards that aren't files (1).",
      );
    }
  });

  test("links in a shard behind a URL are read by a second request", async () => {
    const tar = tar_of(tar_member("a.png", boot), tar_link("b.png", "a.png", "1"));
    let asked = 0;
    const server = createServer((_, response) => {
      asked++;
      response.end(tar);
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/a.tar`;
    const { code, images } = await embed([url]);
    server.close();
    expect([code, images, asked]).toEqual([0, [`${url}/a.png`, `${url}/b.png`], 2]);
  });

  test("every whole image of a truncated one is read, each time, and the damage is reported", async () => {
    const shard = join(await new_folder(), "cut.tar.gz");
    const noise = (i: number) =>
      Buffer.from(Array.from({ length: 5000 }, (_, j) => (j * j * (i + 3) + (j >> 2)) % 251));
    const parts = Array.from({ length: 40 }, (_, i) => tar_member(`${i}.png`, i % 2 === 0 ? boot : noise(i)));
    // Packed in two members of gzip: the second one ends early.
    const packed = [
      gzipSync(Buffer.concat(parts.slice(0, 20))),
      gzipSync(Buffer.concat(parts.slice(20))).subarray(0, -9),
    ];
    await writeFile(shard, Buffer.concat(packed));
    for (let i = 0; i < 2; i++) {
      const { code, stderr, images } = await embed([shard]);
      expect(code).toBe(1);
      expect(images.length).toBe(20);
      expect(stderr).toMatch(
        /can't be read completely as a tar shard: unexpected end of file.*\[INVALID_IMAGE\]\n$/,
      );
    }
  });

  test("a name of megabytes is refused, and the others are read", async () => {
    const data = await new_folder();
    const shard = join(data, "long.tar");
    const long = pax_header([["path", `${"n".repeat(3_900_000)}.png`]]);
    await writeFile(shard, tar_of(long, tar_member("x.png", boot), tar_member("y.png", boot)));
    const { code, stderr, images } = await embed([shard]);
    expect([code, short(images, shard)]).toEqual([1, ["y.png"]]);
    expect(stderr.length).toBeLessThan(1000);
    expect(stderr).toMatch(
      /has a name of 3900004 characters, more than the limit of 4096\. \[INVALID_IMAGE\]/,
    );
  });
});

describe("images that aren't wanted", () => {
  const images = async (tar: string, is_wanted: () => boolean) => {
    const [download, { signal }] = [{ retries: 0, timeout_ms: 1 }, new AbortController()];
    const sizes: (number | undefined)[] = [];
    for await (const image of list_images({ paths: [tar], lists: [], download }, signal, { is_wanted }))
      sizes.push(
        await image.read({ signal, admit: async () => {} }).then(
          ({ width }) => width,
          () => undefined,
        ),
      );
    return sizes;
  };

  test("of a shard are skipped without reading them, links too", async () => {
    const data = await new_folder();
    // Behind an image, the decoder ignores zeros.
    const large = Buffer.concat([boot, Buffer.alloc(2_000_000)]);
    const tar = join(data, "shard.tar");
    const names = ["a.png", "b.png", "c.png", "d.png"];
    await writeFile(
      tar,
      tar_of(...names.map((name) => tar_member(name, large)), tar_link("e.png", "a.png", "2")),
    );
    const handle = await open(tar);
    const read = vi.spyOn(Object.getPrototypeOf(handle), "read");
    await handle.close();
    try {
      let asked = 0;
      const found = await images(tar, () => asked++ % 4 === 1);
      expect(found).toEqual([undefined, 28, undefined, undefined, undefined]);
      const pieces = (await Promise.all(read.mock.results.map(({ value }) => value))) as {
        bytesRead: number;
      }[];
      const bytes = pieces.reduce((sum, { bytesRead }) => sum + bytesRead, 0);
      // One member of five, and the shard's first pieces twice: the second time for the link.
      expect(bytes).toBeLessThan(large.length + 1_000_000);
    } finally {
      read.mockRestore();
    }
  });
});

describe("control characters don't reach the terminal", () => {
  const HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.\nreal.png   0.9999  Admin";

  test("of members' names, in the table and in errors", async () => {
    const shard = join(await new_folder(), "a.tar");
    const named = (name: string, bytes: Uint8Array) =>
      Buffer.concat([pax_header([["path", name]]), tar_member("x", bytes)]);
    await writeFile(
      shard,
      tar_of(named(`${HOSTILE}.png`, boot), named(`${HOSTILE}2.png`, Buffer.from("no"))),
    );
    const { stdout, stderr } = await vit_msn(["classify", shard, "--top-k", "1"]);
    const escaped = "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202egnp.\\nreal.png   0.9999  Admin";
    expect(stdout.split("\n")).toHaveLength(3);
    for (const text of [stdout, stderr]) {
      expect(text).toContain(escaped);
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
      expect(text).not.toMatch(/[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]/);
    }
  });

  test("of JSON, which stays the same JSON", () => {
    const text = `${JSON.stringify({ image: HOSTILE, label: "\ud800 ünïcode 🙂" })}\n`;
    const stdout = process.stdout as { isTTY?: boolean };
    const { isTTY } = stdout;
    try {
      stdout.isTTY = true;
      const shown = json_for_stdout(text);
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
      expect(shown).not.toMatch(/[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]/);
      expect(shown).toContain("\\u009b31m\\u202egnp.");
      expect(JSON.parse(shown)).toEqual(JSON.parse(text));
      stdout.isTTY = false;
      expect(json_for_stdout(text)).toBe(text);
    } finally {
      stdout.isTTY = isTTY;
    }
  });

  test("of class names and of words of the command line", async () => {
    const model = await new_folder();
    const source = join(root, "models/fashion");
    const config = JSON.parse(await readFile(join(source, "config.json"), "utf8"));
    const labels = Object.values<string>(config.id2label).map((label) => `${label}${HOSTILE}`);
    const id2label = Object.fromEntries(labels.map((label, i) => [i, label]));
    const label2id = Object.fromEntries(labels.map((label, i) => [label, i]));
    await writeFile(join(model, "config.json"), JSON.stringify({ ...config, id2label, label2id }));
    for (const name of ["preprocessor_config.json", "model.safetensors"])
      await symlink(join(source, name), join(model, name));
    const { code, stdout } = await vit_msn(["classify", BOOT, "--model", model, "--top-k", "1"]);
    expect([code, stdout.split("\n").length]).toEqual([0, 3]);
    const wrong = await vit_msn(["classify", BOOT, "--\x1b[31mred"]);
    expect(wrong.code).toBe(2);
    for (const text of [stdout, wrong.stderr]) expect(text).not.toContain("\x1b");
  });
});

test("a run with --restart prints how to resume it", async () => {
  const data = await new_folder();
  await copyFile(BOOT, join(data, "a.png"));
  await writeFile(join(data, "b.png"), "<html>");
  const args = [data, "--output", join(folder, "restart.jsonl"), "--on-error", "stop"];
  expect((await embed(args)).stderr).toContain("run the same command again to resume");
  expect((await embed([...args, "--restart"])).stderr).toContain(
    "run the same command again without --restart to resume",
  );
});
