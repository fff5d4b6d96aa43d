import { RawImage, ViTImageProcessor, ViTMSNForImageClassification, VitMsnError } from "vit-msn";
import {
  type Example,
  image_splits,
  type LabelledImages,
  type LabelledImagesOptions,
  open_labelled_images,
  read_image,
  Trainer,
} from "vit-msn/training";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type TemporaryDirectory, temporary_directory } from "../support/directories.ts";
import { read_file } from "../support/files.ts";
import { TRAINABLE_CONFIG } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { with_warnings } from "../support/warnings.ts";

const NAMES = ["a.png", "b.png", "deep/c.png"];
const encode = (text: string) => new TextEncoder().encode(text);

let directory: TemporaryDirectory;
beforeEach(async () => {
  directory = await temporary_directory();
  const files = ["1-trouser", "5-sandal", "8-bag"];
  for (const [i, name] of NAMES.entries())
    await directory.write(`images/${name}`, await read_file(`models/fashion/pictures/${files[i]}.png`));
});
afterEach(() => directory.remove());

/** Opens a list of images/. */
async function open(name: string, content: string | Uint8Array, options: LabelledImagesOptions = {}) {
  const file = new File([content as BlobPart], name);
  const image_dir =
    typeof directory.target === "string"
      ? `${directory.target}/images`
      : await directory.target.getDirectoryHandle("images");
  return open_labelled_images(file, { image_dir, ...options });
}

const refused = async (name: string, content: string | Uint8Array, options?: LabelledImagesOptions) => {
  const { code, message } = await error_of(open(name, content, options));
  return [code, message];
};

const labels = ({ examples }: LabelledImages) => examples.map(({ label }) => label);
const sizes = async ({ examples }: LabelledImages) =>
  Promise.all(
    examples.map(async ({ image }) => (await read_image(image as NonNullable<Example["image"]>, {})).size),
  );

describe("lists as CSV", () => {
  test("have a row for each image, in the columns image and label", async () => {
    const data = await open("train.csv", "image,label\na.png,cat\nb.png,dog\ndeep/c.png,cat\n");
    expect(data).toMatchObject({ classes: ["cat", "dog"], problem_type: "single_label_classification" });
    expect(labels(data)).toEqual(["cat", "dog", "cat"]);
    expect(await sizes(data)).toEqual([
      [28, 28],
      [28, 28],
      [28, 28],
    ]);
  });

  test.each([
    [
      "other columns",
      "id,path,kind\n1,a.png,cat\n2,b.png,dog\n",
      { image_column_name: "path", label_column_name: "kind" },
    ],
    ["a byte order mark and CRLF", "\ufeffimage,label\r\na.png,cat\r\nb.png,dog\r\n", {}],
    ["old line endings and no last one", "image,label\ra.png,cat\rb.png,dog", {}],
    ["blank lines, and spaces around cells", "image , label\n\na.png,cat\n\n\nb.png , dog\n\n", {}],
    ["semicolons", "image;label\na.png;cat\nb.png;dog\n", {}],
    ["tabs", "image\tlabel\na.png\tcat\nb.png\tdog\n", {}],
    [
      "quotes, also around line feeds and quotes",
      'image,label,note\n"a.png","cat","two\nlines, ""x"""\nb.png,dog,\n',
      {},
    ],
  ])("with %s", async (_, content, options) => {
    const data = await open("train.csv", content, options);
    expect([data.classes, labels(data)]).toEqual([
      ["cat", "dog"],
      ["cat", "dog"],
    ]);
  });

  test("in UTF-16, with and without a byte order mark", async () => {
    const text = "image,label\na.png,chat\nb.png,été\n";
    for (const whole of [`\ufeff${text}`, text]) {
      const units = Uint16Array.from(whole, (character) => character.charCodeAt(0));
      expect((await open("train.csv", new Uint8Array(units.buffer))).classes).toEqual(["chat", "été"]);
    }
  });

  test("read the same in pieces of any size, with the right line in errors", async () => {
    const rows = Array.from({ length: 60_000 }, (_, i) => `a.png,"c${i % 3}\r\n${"x".repeat(i % 7)}"\r\n`);
    const { result } = await with_warnings(() => open("train.csv", `image,label\r\n${rows.join("")}`));
    expect(result.length).toBe(60_000);
    expect(result.get(59_999).label).toBe("c2\r\nxx");
    const broken = `image,label\r\n${rows.slice(0, 30_000).join("")}a.png\r\n`;
    expect((await refused("train.csv", broken))[1]).toMatch(
      /^train\.csv, line 60002: has 1 cells.*2 columns/,
    );
  });

  test.each([
    [
      "a missing cell",
      "image,label\na.png\n",
      /train\.csv, line 2: has 1 cells, but the first line names 2 columns/,
    ],
    ["an open quote", 'image,label\na.png,cat\n"b.png,dog\n', /line 3: has a quote that isn't closed/],
    ["text after a quote", 'image,label\n"a.png"x,cat\n', /line 2: has text after a closing quote/],
    [
      "no such column",
      "file,label\na.png,cat\n",
      /no column "image" or "file_name", but "file", "label"; .*image_column_name/,
    ],
    ["two equal columns", "image,label,label\na.png,cat,cat\n", /line 1: has two columns "label"/],
    ["an empty label", "image,label\na.png,cat\nb.png, \n", /line 3, column "label": is empty/],
    ["an empty path", "image,label\n,cat\n", /line 2, column "image": is empty; expected the path or URL/],
    ["no rows", "image,label\n", /train\.csv has no rows/],
    ["nothing", "", /train\.csv is empty/],
    ["an unsupported URL", "image,label\ns3://bucket/a.png,cat\n", /s3:\/\/ isn't supported/],
  ])("with %s are refused by line and column", async (_, content, message) => {
    expect((await refused("train.csv", content))[1]).toMatch(message);
  });

  test("that aren't UTF-8 are refused", async () => {
    const latin1 = Uint8Array.from("image,label\na.png,café\n", (character) => character.charCodeAt(0));
    expect((await refused("train.csv", latin1))[1]).toMatch(/train\.csv, line \d.* isn't UTF-8/);
  });

  test("name missing images at once, or skip them with a warning", async () => {
    const content = "image,label\na.png,cat\nno.png,dog\nb.png,dog\nnor.png,cat\n";
    expect(await refused("train.csv", content)).toEqual([
      "NOT_FOUND",
      expect.stringMatching(
        /2 of 4 rows don't exist: line 3 \(no\.png\), line 5 \(nor\.png\).*missing_images/,
      ),
    ]);
    const { result, warnings } = await with_warnings(() =>
      open("train.csv", content, { missing_images: "skip" }),
    );
    expect(labels(result)).toEqual(["cat", "dog"]);
    expect(warnings).toEqual([expect.stringMatching(/line 3 \(no\.png\).*Skipped 2 of 4 rows/)]);
  });

  test("use repeated rows, with a warning that names them", async () => {
    const content = "image,label\na.png,cat\nb.png,dog\na.png,cat\nb.png,cat\n";
    const { result, warnings } = await with_warnings(() => open("train.csv", content));
    expect(result.length).toBe(4);
    expect(warnings).toEqual([
      expect.stringMatching(
        /2 of 4 rows.*: train\.csv, line 4 repeats train\.csv, line 2; train\.csv, line 5 repeats .*line 3 with another/,
      ),
    ]);
  });
});

describe("labels", () => {
  const csv = (...values: string[]) =>
    `image,label\n${values.map((value, i) => `${NAMES[i % 3]},${value}\n`).join("")}`;
  const jsonl = (...values: unknown[]) =>
    values.map((label, i) => `${JSON.stringify({ image: NAMES[i % 3], label })}\n`).join("");

  test("that are integers are classes in numeric order, also with gaps", async () => {
    const data = await open("train.csv", csv("10", "9", "2"));
    expect([data.classes, labels(data)]).toEqual([
      ["2", "9", "10"],
      ["10", "9", "2"],
    ]);
    expect((await open("train.jsonl", jsonl(10, 9, 2))).classes).toEqual(["2", "9", "10"]);
  });

  test("that have fractions are regression, and integers if that is asked for", async () => {
    const data = await open("train.csv", csv("1.5", "2", "-3e-1"));
    expect(data).toMatchObject({ problem_type: "regression", classes: undefined, num_labels: 1 });
    expect(labels(data)).toEqual([1.5, 2, -0.3]);
    const whole = await open("train.jsonl", jsonl(1, 2, 3), { problem_type: "regression" });
    expect([whole.problem_type, labels(whole)]).toEqual(["regression", [1, 2, 3]]);
    const two = await open("train.jsonl", jsonl([0.5, 1], [2, 3]));
    expect([two.problem_type, two.num_labels, labels(two)]).toEqual([
      "regression",
      2,
      [
        [0.5, 1],
        [2, 3],
      ],
    ]);
    expect((await refused("train.csv", csv("1.5", "cat"), { problem_type: "regression" }))[1]).toMatch(
      /line 3, column "label": "cat" isn't a number/,
    );
    expect((await refused("train.jsonl", jsonl([0.5, 1], [2])))[1]).toMatch(
      /line 2, column "label": has 1 numbers, other rows have 2/,
    );
  });

  test("that are lists are several classes: names, ids, or a 0 or 1 for each", async () => {
    const named = await open("train.jsonl", jsonl(["cat", "dog"], [], ["dog"]));
    expect(named).toMatchObject({ problem_type: "multi_label_classification", classes: ["cat", "dog"] });
    expect(labels(named)).toEqual([
      [1, 1],
      [0, 0],
      [0, 1],
    ]);
    const ids = await open("train.jsonl", jsonl([0, 2], [1], [2]));
    expect([ids.classes, labels(ids)]).toEqual([
      ["0", "1", "2"],
      [
        [1, 0, 1],
        [0, 1, 0],
        [0, 0, 1],
      ],
    ]);
    const flags = await open("train.jsonl", jsonl([0, 1, 1], [1, 0, 0], [0, 0, 0]));
    expect(labels(flags)).toEqual([
      [0, 1, 1],
      [1, 0, 0],
      [0, 0, 0],
    ]);
    const text = await open("train.csv", csv("cat|dog", "", "dog | dog"), {
      label_separator: "|",
      problem_type: "multi_label_classification",
    });
    expect([text.classes, labels(text)]).toEqual([
      ["cat", "dog"],
      [
        [1, 1],
        [0, 0],
        [0, 1],
      ],
    ]);
    expect(
      (await refused("train.jsonl", jsonl(["cat"]), { problem_type: "single_label_classification" }))[1],
    ).toMatch(/line 1, column "label": has several labels/);
  });

  test("have the given classes, and others are an error", async () => {
    const data = await open("test.csv", csv("dog", "1", "0"), { classes: ["dog", "cat"] });
    expect([data.classes, labels(data)]).toEqual([
      ["dog", "cat"],
      ["dog", "cat", "dog"],
    ]);
    expect((await refused("test.csv", csv("cat", "cow", "hen"), { classes: ["dog", "cat"] }))[1]).toMatch(
      /test\.csv, line 3, column "label": has labels that aren't among the classes \(dog, cat\): "cow", "hen"/,
    );
    // Integers that are names of classes aren't indices.
    expect((await refused("test.csv", csv("0"), { classes: ["1", "2"] }))[1]).toMatch(/"0"/);
    expect((await refused("test.csv", csv("2"), { classes: ["dog", "cat"] }))[1]).toMatch(
      /2 isn't the index of one of the 2 classes/,
    );
  });
});

describe("lists as JSON lines", () => {
  test("with a byte order mark, CRLF and blank lines", async () => {
    const content = '\ufeff{"image": "a.png", "label": "cat"}\r\n\r\n{"label": true, "image": "b.png"}';
    expect(labels(await open("train.jsonl", content))).toEqual(["cat", "true"]);
  });

  test.each([
    ['{"image": "a.png", "label": 1}\n{"image": ', /train\.jsonl, line 2: isn't valid JSON/],
    ['{"image": "a.png", "label": 1}\n[1]\n', /line 2: must be a JSON object/],
    ['{"image": "a.png", "label": 1}\n{"image": "b.png"}\n', /line 2, column "label": is empty/],
    ['{"image": 5, "label": 1}\n', /line 1, column "image": isn't text/],
    [
      '{"image": "a.png", "label": {"name": "cat"}}\n',
      /line 1, column "label": \{"name":"cat"\} isn't a class/,
    ],
    ["", /is empty; it needs a JSON object on each line/],
  ])("refused by line: %s", async (content, message) => {
    expect((await refused("train.jsonl", content))[1]).toMatch(message);
  });

  test("with images in data: URLs", async () => {
    const bytes = await read_file("models/fashion/pictures/8-bag.png");
    const image = `data:image/png;base64,${btoa(String.fromCharCode(...bytes))}`;
    expect(await sizes(await open("train.jsonl", JSON.stringify({ image, label: "bag" })))).toEqual([
      [28, 28],
    ]);
  });
});

describe("Parquet files of Hugging Face datasets", () => {
  const fixture = async (name: string, options?: LabelledImagesOptions) =>
    open(name, await read_file(`test/fixtures/lists/${name}`), options);

  test("embed images, which are read when they are needed; ClassLabel names the classes", async () => {
    const data = await fixture("class_label.parquet");
    expect([data.classes, labels(data)]).toEqual([
      ["trouser", "shoe", "bag"],
      ["trouser", "shoe", "bag", "shoe"],
    ]);
    const read = data.examples.map(({ image }) => read_image(image as NonNullable<Example["image"]>, {}));
    for (const [i, name] of ["1-trouser", "5-sandal", "8-bag", "9-ankle-boot"].entries()) {
      const expected = await RawImage.read(
        new Blob([(await read_file(`models/fashion/pictures/${name}.png`)) as BlobPart]),
      );
      expect((await read[i])?.data).toEqual(expected.data);
    }
  });

  test("whose integers stand for other classes aren't mixed", async () => {
    const bytes = await read_file("test/fixtures/lists/class_label.parquet");
    const other = bytes.slice();
    // The features in the metadata, with two names exchanged for others of their lengths.
    const text = new TextDecoder("latin1").decode(bytes);
    for (let at = text.indexOf('"shoe"'); at >= 0; at = text.indexOf('"shoe"', at + 1))
      other.set(encode("sock"), at + 1);
    const files = [bytes, other].map((content, i) => new File([content as BlobPart], `${i}.parquet`));
    expect((await error_of(open_labelled_images(files))).message).toMatch(
      /^1\.parquet has labels of the classes trouser, sock, bag, but 0\.parquet of trouser, shoe, bag/,
    );
  });

  test("may have several classes for each image", async () => {
    const data = await fixture("sequence.parquet");
    expect(data).toMatchObject({
      problem_type: "multi_label_classification",
      classes: ["trouser", "shoe", "bag"],
    });
    expect(labels(data)).toEqual([
      [1, 0, 0],
      [0, 1, 1],
      [0, 0, 0],
      [0, 1, 0],
    ]);
  });

  test("may name images by their paths; whole floats are regression", async () => {
    for (const name of ["1-trouser.png", "5-sandal.png"])
      await directory.write(`images/${name}`, await read_file(`models/fashion/pictures/${name}`));
    const data = await fixture("paths.parquet");
    expect([data.problem_type, labels(data)]).toEqual(["regression", [1, 2, 3, 4]]);
    const read = (i: number) => read_image(data.get(i).image as NonNullable<Example["image"]>, {});
    expect((await read(1)).size).toEqual([28, 28]);
    expect((await error_of(read(2))).message).toMatch(/row 3, column "image": .*there is no file 8-bag\.png/);
    expect((await error_of(read(3))).message).toMatch(/row 4, column "image": .*neither bytes nor a path/);
  });

  test("that are damaged, cut or compressed otherwise are refused by name", async () => {
    expect((await error_of(fixture("zstd.parquet"))).message).toMatch(
      /zstd\.parquet, .*ZSTD isn't supported.*snappy/,
    );
    const bytes = await read_file("test/fixtures/lists/class_label.parquet");
    for (const damaged of [bytes.subarray(0, 900), bytes.subarray(900), encode("PAR1"), new Uint8Array()])
      expect((await refused("cut.parquet", damaged))[1]).toMatch(
        /^cut\.parquet can't be read as a Parquet file: /,
      );
  });
});

test("a Parquet file that is damaged anywhere is read or refused, never trusted with its counts", async () => {
  const whole = await read_file("test/fixtures/lists/paths.parquet");
  let refusals = 0;
  for (let at = 0; at < whole.length; at++)
    for (const byte of [0x7f, 0xff]) {
      const damaged = whole.slice();
      damaged[at] = byte;
      try {
        const data = await open("train.parquet", damaged);
        await read_image(data.get(0).image as NonNullable<Example["image"]>, {});
      } catch (error) {
        expect(error, `byte ${at} is ${byte}`).toBeInstanceOf(VitMsnError);
        refusals++;
      }
    }
  expect(refusals).toBeGreaterThan(whole.length);
});

describe("folders", () => {
  const file = async (name: string) => read_file(`models/fashion/pictures/${name}.png`);
  const target = async (name: string) =>
    typeof directory.target === "string"
      ? `${directory.target}/${name}`
      : directory.target.getDirectoryHandle(name);

  test("with metadata have its labels instead of the folders' names", async () => {
    await directory.write("data/x/1.png", await file("1-trouser"));
    await directory.write("data/y/2.png", await file("8-bag"));
    await directory.write("data/y/3.png", await file("8-bag"));
    await directory.write("data/metadata.csv", encode("file_name,label\nx/1.png,cat\n./y/2.png,dog\n"));
    const { result, warnings } = await with_warnings(async () => open_labelled_images(await target("data")));
    expect([result.classes, labels(result)]).toEqual([
      ["cat", "dog"],
      ["cat", "dog"],
    ]);
    expect(await sizes(result)).toHaveLength(2);
    expect(warnings).toEqual([
      expect.stringMatching(/images that the metadata doesn't list \(1\): y\/3\.png/),
    ]);
  });

  test("may have metadata as JSON lines in each folder, and other columns of images", async () => {
    for (const part of ["one", "two"]) {
      await directory.write(`data/${part}/i.png`, await file("8-bag"));
      const line = JSON.stringify({ photo_file_name: "i.png", kind: part });
      await directory.write(`data/${part}/metadata.jsonl`, encode(`${line}\n`));
    }
    const options = { label_column_name: "kind", image_column_name: "photo" };
    const { result, warnings } = await with_warnings(async () =>
      open_labelled_images(await target("data"), options),
    );
    expect([labels(result), warnings]).toEqual([["one", "two"], []]);
  });

  test("with metadata of missing images or without labels are refused", async () => {
    await directory.write("data/1.png", await file("8-bag"));
    await directory.write("data/metadata.csv", encode("file_name,label\n1.png,cat\n../2.png,dog\n"));
    expect((await error_of(open_labelled_images(await target("data")))).message).toMatch(
      /metadata\.csv: the images of 1 of 2 rows don't exist: line 3 \(\.\.\/2\.png\)/,
    );
    await directory.write("data/metadata.csv", encode("file_name,text\n1.png,cat\n"));
    expect((await error_of(open_labelled_images(await target("data")))).message).toMatch(
      /metadata\.csv has no column "label" or "labels", but "file_name", "text"; .*label_column_name/,
    );
  });

  test("may hold splits with metadata", async () => {
    for (const split of ["train", "dev"]) {
      await directory.write(`data/${split}/1.png`, await file("8-bag"));
      await directory.write(`data/${split}/metadata.csv`, encode(`file_name,label\n1.png,${split}\n`));
    }
    const folder = await target("data");
    expect((await image_splits(folder)).sort()).toEqual(["train", "validation"]);
    const { result } = await with_warnings(() => open_labelled_images(folder, { split: "validation" }));
    expect(labels(result)).toEqual(["dev"]);
  });

  test("lists of several splits are used together, with a warning", async () => {
    const bytes = await read_file("test/fixtures/lists/class_label.parquet");
    const lists = ["train-0", "test-0"].map((name) => new File([bytes as BlobPart], `${name}.parquet`));
    const { result, warnings } = await with_warnings(() => open_labelled_images(lists));
    expect([result.length, warnings]).toEqual([
      8,
      [expect.stringMatching(/splits train, test; all are used/)],
    ]);
  });

  test("may hold shards, whose names say which split they belong to", async () => {
    const bytes = await read_file("test/fixtures/lists/class_label.parquet");
    for (const name of ["train-00000-of-00002", "train-00001-of-00002", "eval-00000-of-00001"])
      await directory.write(`hub/data/${name}.parquet`, bytes);
    const folder = await target("hub");
    expect((await image_splits(folder)).sort()).toEqual(["test", "train"]);
    expect((await open_labelled_images(folder)).length).toBe(8);
    expect((await open_labelled_images(folder, { split: "test" })).length).toBe(4);
    expect((await error_of(open_labelled_images(folder, { split: "validation" }))).message).toMatch(
      /lists of the splits test, train, but none of validation/,
    );
    await directory.write("hub/data/notes.csv", encode("image,label\n"));
    const { result, warnings } = await with_warnings(() => open_labelled_images(folder));
    expect([result.length, warnings]).toEqual([8, [expect.stringMatching(/skipped 1 .*data\/notes\.csv/)]]);
  });
});

test("a file of another kind, or a Blob without a name, is refused", async () => {
  expect((await refused("train.txt", "a.png cat"))[1]).toMatch(
    /train\.txt isn't a list of images.*\.csv, .*\.parquet/,
  );
  expect((await error_of(open_labelled_images(new Blob(["x"])))).message).toMatch(
    /Pass bytes and Blobs as a File/,
  );
  expect((await error_of(open_labelled_images([]))).message).toMatch(/at least one list/);
});

describe("training from lists", () => {
  const image_processor = new ViTImageProcessor({ size: { height: 8, width: 8 } });
  const model_for = ({ classes, num_labels, problem_type }: LabelledImages) =>
    ViTMSNForImageClassification.from_config({
      ...TRAINABLE_CONFIG,
      problem_type,
      ...(classes ? { id2label: { ...classes } } : { num_labels }),
    });

  test.each([
    [
      "several classes",
      "train.jsonl",
      '{"image":"a.png","label":["x"]}\n{"image":"b.png","label":["x","y"]}\n',
      "f1_micro",
    ],
    ["a number", "train.csv", "image,label\na.png,0.5\nb.png,-1.25\n", "r2"],
    [
      "two numbers",
      "train.jsonl",
      '{"image":"a.png","label":[0.5,1]}\n{"image":"b.png","label":[0,2]}\n',
      "mae",
    ],
    ["a class", "train.csv", "image,label\na.png,cat\nb.png,dog\n", "accuracy"],
  ])("learns %s for each image, with metrics", async (_, name, content, metric) => {
    const data = await open(name, content);
    const model = await model_for(data);
    const trainer = new Trainer({
      model,
      image_processor,
      train_dataset: data,
      eval_dataset: data,
      args: { max_steps: 60, per_device_train_batch_size: 2, learning_rate: 0.01, save_strategy: "no" },
    });
    const before = await trainer.evaluate();
    await trainer.train();
    const after = await trainer.evaluate();
    expect(after.eval_loss).toBeLessThan(0.2 * (before.eval_loss as number));
    expect(after[`eval_${metric}`]).toEqual(expect.any(Number));
    await model.dispose();
  });

  test("a model for another kind of labels is refused; one for any kind takes the data's", async () => {
    const train_dataset = await open("train.csv", "image,label\na.png,0.5\nb.png,-1.25\n");
    const config = { ...TRAINABLE_CONFIG, num_labels: 1 };
    const model = await ViTMSNForImageClassification.from_config(config);
    new Trainer({ model, image_processor, train_dataset });
    expect(model.config.problem_type).toBe("regression");
    model.config.problem_type = "multi_label_classification";
    expect(() => new Trainer({ model, image_processor, train_dataset })).toThrow(
      /train_dataset has labels for regression, but the model's problem_type is multi_label_classification/,
    );
    await model.dispose();
  });

  test("stratified splits and class-balanced sampling need classes", async () => {
    const data = await open("train.csv", "image,label\na.png,0.5\nb.png,-1.25\n");
    expect(() => data.split(0.5, 1, { stratified: true })).toThrow(/needs classes/);
    const model = await model_for(data);
    const args = { max_steps: 1, train_sampling_strategy: "class_balanced", save_strategy: "no" } as const;
    const trainer = new Trainer({ model, image_processor, train_dataset: data, args });
    expect((await error_of(trainer.train())).message).toMatch(/class_balanced.*labels are for regression/);
    await model.dispose();
  });

  test("an image that can't be read is named by file and row", async () => {
    await directory.write("images/bad.png", encode("not an image"));
    const data = await open("train.csv", "image,label\na.png,x\nbad.png,y\n");
    const model = await model_for(data);
    const trainer = new Trainer({
      model,
      image_processor,
      train_dataset: data,
      args: { max_steps: 1, save_strategy: "no" },
    });
    expect((await error_of(trainer.train())).message).toMatch(/bad\.png can't be used for training/);
    await model.dispose();
  });
});
