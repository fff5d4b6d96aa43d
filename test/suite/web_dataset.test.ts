import { type Example, type LabelledImages, open_labelled_images, read_image } from "vit-msn/training";
import { describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { error_of } from "../support/rejections.ts";
import { with_warnings } from "../support/warnings.ts";

const encode = (text: string) => new TextEncoder().encode(text);
const png = (name: string) => read_file(`models/fashion/pictures/${name}.png`);

type Member = readonly [name: string, content: string | Uint8Array];

/** A ustar archive. */
function tar(...members: readonly Member[]): Uint8Array<ArrayBuffer> {
  const blocks = members.flatMap(([name, content]) => {
    const bytes = typeof content === "string" ? encode(content) : content;
    const header = new Uint8Array(512);
    const put = (text: string, at: number) => header.set(encode(text), at);
    put(name, 0);
    put(`${bytes.length.toString(8).padStart(11, "0")}\0`, 124);
    put("        ", 148);
    put("0", 156);
    put("ustar\x0000", 257);
    put(
      `${header
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, "0")}\0 `,
      148,
    );
    return [header, bytes, new Uint8Array((512 - (bytes.length % 512)) % 512)];
  });
  const parts = [...blocks, new Uint8Array(1024)];
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  parts.reduce((at, part) => {
    whole.set(part, at);
    return at + part.length;
  }, 0);
  return whole;
}

const shard = (name: string, ...members: readonly Member[]) => new File([tar(...members)], name);
const labels = ({ examples }: LabelledImages) => examples.map(({ label }) => label);
const name = ({ examples }: LabelledImages, i: number) =>
  (examples[i] as { image: { name: string } }).image.name;
const read = ({ examples }: LabelledImages, i: number) =>
  read_image(examples[i]?.image as NonNullable<Example["image"]>, {});

describe("WebDataset shards", () => {
  test("have an image and a label by key, over several shards; images are read in any order", async () => {
    const [bag, boot] = [await png("8-bag"), await png("9-ankle-boot")];
    const data = await open_labelled_images([
      shard(
        "train-0.tar",
        ["x/0001.png", bag],
        ["x/0001.cls", "1\n"],
        ["x/0002.cls", "0"],
        ["x/0002.PNG", boot],
      ),
      shard("train-1.tar", ["0001.__meta", "?"], ["0001.cls", "1"], ["0001.png", boot]),
    ]);
    expect(data).toMatchObject({ problem_type: "single_label_classification", classes: ["0", "1"] });
    expect(labels(data)).toEqual(["1", "0", "1"]);
    const expected = [bag, boot, boot].map((bytes) => read_image(new Blob([bytes as BlobPart]), {}));
    for (const i of [2, 0, 1]) expect((await read(data, i)).data).toEqual((await expected[i])?.data);
    expect(name(data, 1)).toBe("train-0.tar/x/0002.PNG");
    const [first, second] = data.split(0.4, 1);
    expect([...labels(first), ...labels(second)].sort()).toEqual(["0", "1", "1"]);
  });

  test("may have labels in JSON or another member, of any kind", async () => {
    const bag = await png("8-bag");
    const json = shard(
      "a.tar",
      ["1.png", bag],
      ["1.json", '{"label": ["x", "y"], "score": 0.5}'],
      ["1.kind", "bag"],
    );
    expect(labels(await open_labelled_images(json))).toEqual([[1, 1]]);
    expect(labels(await open_labelled_images(json, { label_column_name: "score" }))).toEqual([0.5]);
    expect(labels(await open_labelled_images(json, { label_column_name: "kind" }))).toEqual(["bag"]);
    const several = shard("a.tar", ["1.cls", "x y"], ["1.left.png", bag], ["1.right.png", bag]);
    const options = { image_column_name: "right.png", label_separator: " " };
    const data = await open_labelled_images(several, options);
    expect([data.problem_type, name(data, 0)]).toEqual(["multi_label_classification", "a.tar/1.right.png"]);
  });

  test("with more members than one read, and long contents between headers", async () => {
    const bag = await png("8-bag");
    const members = Array.from({ length: 300 }, (_, i): Member[] => [
      [`${i}.txt`, "x".repeat(3000 * (i % 4))],
      [`${i}.png`, bag],
      [`${i}.cls`, String(i % 3)],
    ]).flat();
    const data = await open_labelled_images(shard("a.tar", ...members));
    expect([data.length, labels(data).slice(0, 4)]).toEqual([300, ["0", "1", "2", "0"]]);
    expect((await read(data, 299)).size).toEqual([28, 28]);
  });

  test("with a key that occurs again are used, with a warning", async () => {
    const bag = await png("8-bag");
    const member = (key: string): Member[] => [
      [`${key}.png`, bag],
      [`${key}.cls`, "x"],
    ];
    const { result, warnings } = await with_warnings(() =>
      open_labelled_images(shard("a.tar", ...member("1"), ...member("2"), ...member("1"))),
    );
    expect([result.length, warnings]).toEqual([
      3,
      [expect.stringMatching(/a\.tar: 1 keys occur again.*: 1\./)],
    ]);
  });

  test.each<[string, Member[], RegExp]>([
    [
      "without label",
      [["1.png", ""]],
      /a\.tar, key 1: there is no \.cls, and there is no \.json; .*label_column_name/,
    ],
    [
      "whose JSON has none",
      [
        ["1.png", ""],
        ["1.json", '{"a": 1}'],
      ],
      /key 1: there is no \.cls, and \.json has only a/,
    ],
    [
      "whose JSON is invalid",
      [
        ["1.png", ""],
        ["1.json", "{"],
      ],
      /key 1: \.json isn't valid JSON/,
    ],
    ["without image", [["2.cls", "1"]], /key 2: there is no image/],
    [
      "with two images",
      [
        ["1.a.png", ""],
        ["1.b.png", ""],
        ["1.cls", "1"],
      ],
      /key 1: .*\(a\.png, b\.png\).*image_column_name/,
    ],
    [
      "with a member twice",
      [
        ["1.png", ""],
        ["1.png", ""],
        ["1.cls", "1"],
      ],
      /key 1: there are two members \.png/,
    ],
    [
      "with an empty label",
      [
        ["1.png", ""],
        ["1.cls", " "],
      ],
      /key 1, column "cls": is empty/,
    ],
    ["without members", [], /a\.tar has no images/],
  ])("%s are refused by key", async (_, members, message) => {
    const error = await error_of(open_labelled_images(shard("a.tar", ...members)));
    expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", expect.stringMatching(message)]);
  });

  test("that are cut, compressed or no archives are refused by name", async () => {
    const whole = tar(["1.png", await png("8-bag")], ["1.cls", "1"]);
    const open = (bytes: BlobPart, name = "a.tar") => error_of(open_labelled_images(new File([bytes], name)));
    for (const end of [700, whole.length - 1536])
      expect((await open(whole.subarray(0, end))).message).toMatch(
        /^a\.tar can't be read completely as a tar shard/,
      );
    expect((await open(encode("no archive".repeat(100)))).message).toMatch(/it isn't a tar archive/);
    const gzip = new Uint8Array(
      await new Response(new Blob([whole]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer(),
    );
    expect((await open(gzip, "a.tar.gz")).message).toMatch(/a\.tar\.gz is compressed by gzip.*gunzip/);
    const mixed = [new File([whole], "a.tar"), new File(["image,label"], "a.csv")];
    expect((await error_of(open_labelled_images(mixed))).message).toMatch(/can't be mixed/);
  });
});
