import { copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { env, RawImage } from "vit-msn";
import { ImageFolder, UnlabelledImageFolder } from "vit-msn/training";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { time_left } from "../../ts/cli/progress_bars.ts";
import { visible } from "../../ts/cli/terminal.ts";
import { decode_name, encode_name } from "../../ts/files/file_names.ts";
import { root } from "../support/cli.ts";
import { skipped } from "../support/skips.ts";

// Folders of images as only a disk has them: links, names of any bytes, and what tools put into them.

const IMAGE = join(root, "models/fashion/pictures/8-bag.png");
const warn = env.warn;
let folder: string;
let warnings: string[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-folders-"));
  warnings = [];
  env.warn = (message) => void warnings.push(message.replaceAll(folder, "ROOT"));
});
afterEach(async () => {
  env.warn = warn;
  await rm(folder, { recursive: true });
});

/** Writes an image to each path below the folder, or a text where its name is no image's. */
async function fill(...paths: (string | Buffer)[]): Promise<void> {
  for (const path of paths) {
    const whole = Buffer.concat([Buffer.from(`${folder}/`), Buffer.from(path)]);
    const slash = whole.lastIndexOf("/");
    await mkdir(whole.subarray(0, slash), { recursive: true });
    if (whole.toString("latin1").endsWith(".png")) await copyFile(IMAGE, whole);
    else await writeFile(whole, "x");
  }
}

const found = ({ classes, examples }: ImageFolder) => ({
  classes,
  images: examples.map(({ image }) => String(image).replace(`${folder}/`, "")),
});

describe("ImageFolder", () => {
  test("follows links to classes and below them, but not in a circle", async () => {
    await fill("data/cat/1.png", "pool/dog/1.png", "pool/more/2.png");
    await symlink("../pool/dog", join(folder, "data/dog"));
    await symlink("../../pool/more", join(folder, "data/cat/more"));
    await symlink("..", join(folder, "data/cat/up"));
    expect(found(await ImageFolder.open(join(folder, "data")))).toEqual({
      classes: ["cat", "dog"],
      images: ["data/cat/1.png", "data/cat/more/2.png", "data/dog/1.png"],
    });
  });

  test("counts what it skips, also outside of the folders of classes", async () => {
    await fill(
      "data/cat/1.png",
      "data/cat/2.heic",
      "data/cat/deep/3.HEIC",
      "data/dog/1.png",
      "data/notes.csv",
      "data/x.png",
    );
    await fill(
      "data/__MACOSX/cat/._1.png",
      "data/__old/1.png",
      "data/cat/Thumbs.db",
      "data/cat/.ipynb_checkpoints/1.png",
    );
    const { classes } = await ImageFolder.open(join(folder, "data"));
    expect(classes).toEqual(["cat", "dog"]);
    expect(warnings).toEqual([
      "ROOT/data: skipped 3 files that are not images: .heic 2, .csv 1; skipped images outside the folders of classes (1); " +
        'skipped folders whose names begin with "__" (1): ROOT/data/__old.',
    ]);
  });

  test("the error of a class without images names what its folder holds, and which extensions count", async () => {
    await fill("data/cat/1.png", "data/fox/1.heic");
    await expect(ImageFolder.open(join(folder, "data"))).rejects.toThrow(
      /no image of the class fox \(skipped 1 file that is not an image: \.heic 1\); add files whose names end in \.png, .*\.bmp/,
    );
  });

  test("names in NFC and NFD are one class", async () => {
    await fill(
      `a/${"épée".normalize("NFD")}/1.png`,
      "a/dog/1.png",
      `b/${"épée".normalize("NFC")}/1.png`,
      "b/dog/1.png",
    );
    const train = await ImageFolder.open(join(folder, "a"));
    const { classes, length } = await ImageFolder.open(join(folder, "b"), { classes: train.classes });
    expect([classes, length]).toEqual([["dog", "épée".normalize("NFC")], 2]);
    await fill(`a/${"épée".normalize("NFC")}/2.png`);
    expect((await ImageFolder.open(join(folder, "a"))).length).toBe(3);
  });

  test.skipIf(skipped(process.platform !== "linux", "only Linux's file names are any bytes"))(
    "names of any bytes are read, in the order of Python",
    async () => {
      const latin1 = Buffer.from("data/caf\xe9/\xe9.png", "latin1");
      await fill(latin1, "data/cat/1.png", "data/\u{1f600}/1.png", "data/\ufb01/1.png");
      const { classes, examples } = await ImageFolder.open(join(folder, "data"));
      expect(classes).toEqual(["caf\udce9", "cat", "\ufb01", "\u{1f600}"]);
      for (const { image } of examples) expect((await RawImage.read(image as string)).size).toEqual([28, 28]);
    },
  );

  test("a link that leads nowhere is an image that can't be read", async () => {
    await fill("data/cat/1.png");
    await symlink("/nowhere/x.png", join(folder, "data/cat/z.png"));
    const { examples } = await ImageFolder.open(join(folder, "data"));
    expect(examples).toHaveLength(2);
    await expect(RawImage.read(examples[1]?.image as string)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  test("a link to a class that leads nowhere is named", async () => {
    await fill("data/cat/1.png");
    await symlink("/nowhere/dog", join(folder, "data/dog"));
    expect((await ImageFolder.open(join(folder, "data"))).classes).toEqual(["cat"]);
    expect(warnings).toEqual(["ROOT/data: skipped broken links (1): ROOT/data/dog."]);
  });

  test("a folder that isn't there, and one of another scheme", async () => {
    await expect(ImageFolder.open(join(folder, "none"))).rejects.toMatchObject({ code: "NOT_FOUND" });
    await expect(ImageFolder.open("s3://bucket/pets")).rejects.toMatchObject({ code: "UNSUPPORTED" });
    await expect(ImageFolder.open(IMAGE)).rejects.toThrow(/is a file; expected a folder/);
  });
});

describe("splits, as Hugging Face datasets finds them", () => {
  test.each([
    [["train", "test"], "train"],
    [["Training", "Testing"], "Training"],
    [["pets-train", "pets-val", "pets_test"], "pets-train"],
    [["train"], "train"],
  ])("%j", async (names, train) => {
    for (const name of names) await fill(`${name}/cat/1.png`, `${name}/dog/1.png`);
    const { classes, images } = found(await ImageFolder.open(folder));
    expect([classes, images]).toEqual([
      ["cat", "dog"],
      [`${train}/cat/1.png`, `${train}/dog/1.png`],
    ]);
    expect(warnings).toEqual([expect.stringMatching(`^ROOT holds the splits .*; using ${train}\\.$`)]);
  });

  test("another split is read by name", async () => {
    await fill("train/cat/1.png", "valid/cat/2.png", "eval/cat/3.png");
    expect(await ImageFolder.splits(folder)).toEqual(["test", "train", "validation"]);
    expect(found(await ImageFolder.open(folder, { split: "validation" })).images).toEqual([
      "valid/cat/2.png",
    ]);
    expect(found(await ImageFolder.open(folder, { split: "test" })).images).toEqual(["eval/cat/3.png"]);
    await rm(join(folder, "train"), { recursive: true });
    await expect(ImageFolder.open(folder)).rejects.toThrow(/splits eval, valid, but none named train/);
  });

  test("classes by such names stay classes", async () => {
    await fill("train/1.png", "car/1.png", "plane/deep/1.png");
    expect((await ImageFolder.open(folder)).classes).toEqual(["car", "plane", "train"]);
    await fill("train/deep/2.png");
    expect((await ImageFolder.open(folder)).classes).toEqual(["car", "plane", "train"]);
    expect(warnings).toEqual([]);
  });

  test("a warning names a class that may be a split", async () => {
    await fill("train/cat/1.png", "train/dog/1.png", "unlabelled/1.png");
    expect((await ImageFolder.open(folder)).classes).toEqual(["train", "unlabelled"]);
    expect(warnings).toEqual([
      "ROOT: train is read as a class, because the folder also contains folders that aren't splits; if it is a split, pass train itself.",
    ]);
  });

  test("an ambiguous layout is refused", async () => {
    await fill("train/cat/1.png", "test/cat/1.png", "more/cat/1.png");
    await expect(ImageFolder.open(folder)).rejects.toThrow(/splits test, train and other folders \(more\)/);
    await rm(join(folder, "more"), { recursive: true });
    await fill("test/x.png");
    await expect(ImageFolder.open(folder)).rejects.toThrow(
      /splits test, train, but test has no folders of classes/,
    );
  });

  test("without labels the train split is read, too", async () => {
    await fill("train/1.png", "test/2.png", "train/notes.txt");
    expect((await UnlabelledImageFolder.open(folder)).examples).toEqual([
      { image: join(folder, "train/1.png") },
    ]);
    expect(warnings).toEqual([
      "ROOT holds the splits test, train; using train.",
      "ROOT/train: skipped 1 file that is not an image: .txt 1.",
    ]);
    await fill("other/3.png");
    expect((await UnlabelledImageFolder.open(folder)).length).toBe(3);
  });
});

test("names of any bytes are text and back", () => {
  for (const bytes of [
    [0x61],
    [0xc3, 0xa9],
    [0xe9],
    [0x61, 0xf0, 0x9f, 0x98, 0x80, 0xff],
    [0xed, 0xb3, 0xa9],
    [0xf0, 0x9f],
    [0xef, 0xbb, 0xbf],
  ]) {
    const name = decode_name(Uint8Array.from(bytes));
    expect([...Buffer.from(encode_name(name))]).toEqual(bytes);
  }
  expect(decode_name(Uint8Array.of(0x61, 0xe9, 0xc3, 0xa9))).toBe("a\udce9é");
});

test("only what a terminal would obey or hide is shown as escapes", () => {
  expect(visible("a\x1b[2J\x07\x7f\x9b\n\r\t\u202e\u2066\ufeff\u2028\udce9\0")).toBe(
    "a\\x1b[2J\\x07\\x7f\\x9b\\n\\r\\t\\u202e\\u2066\\ufeff\\u2028\\udce9\\x00",
  );
  const harmless = "C:\\new\\täble 👩‍💻 日本 عربي";
  expect(visible(harmless)).toBe(harmless);
});

test("the remaining time is always printed in words", () => {
  expect(time_left(434, 434, "NULL")).toBe("done");
  expect(time_left(0, 434, "NULL")).toBe("time left unknown");
  expect(time_left(1, 434, "INF")).toBe("time left unknown");
  expect(time_left(1, 434, 12)).toBe("12 s left");
});
