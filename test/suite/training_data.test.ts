import { env, RawImage, ViTImageProcessor } from "vit-msn";
import {
  compose,
  ImageFolder,
  mirror,
  Random,
  random_horizontal_flip,
  random_resized_crop,
  reference_transforms,
} from "vit-msn/training";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type TemporaryDirectory, temporary_directory } from "../support/directories.ts";
import { read_file } from "../support/files.ts";
import { error_of } from "../support/rejections.ts";

/** Every pixel says where it is. */
function grid(width: number, height: number): RawImage {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => {
    const pixel = Math.floor(i / 3);
    return [pixel % width, Math.floor(pixel / width), 7][i % 3] as number;
  });
  return new RawImage(data, width, height, 3);
}

describe("augmentation", () => {
  test("a crop's area and shape are the reference's, and it lies in the image", () => {
    const [width, height] = [90, 60];
    const areas: number[] = [];
    for (let i = 0; i < 600; i++) {
      // Without a filter every pixel still says where it was.
      const cropped = random_resized_crop([8, 8], { resample: 0 })(grid(width, height), new Random(i));
      expect(cropped.size).toEqual([8, 8]);
      const [left, top] = [cropped.data[0] as number, cropped.data[1] as number];
      const last = cropped.data.length - 3;
      const [right, bottom] = [cropped.data[last] as number, cropped.data[last + 1] as number];
      // Of each side, the middles of the first and of the last eighth.
      const [w, h] = [((right - left) * 8) / 7, ((bottom - top) * 8) / 7];
      areas.push((w * h) / (width * height));
      expect(w / h).toBeGreaterThan(0.55);
      expect(w / h).toBeLessThan(1.75);
    }
    const mean = areas.reduce((a, b) => a + b, 0) / areas.length;
    expect(Math.min(...areas)).toBeLessThan(0.12);
    // torchvision's mean over 20,000 crops of this size is 0.397, with a standard deviation of 0.194.
    expect(Math.abs(mean - 0.397)).toBeLessThan((4 * 0.194) / Math.sqrt(areas.length));
  });

  test("an image that no crop fits is cropped in its middle", () => {
    const transform = random_resized_crop([4, 4], { scale: [0.9, 1], ratio: [3 / 4, 4 / 3], resample: 0 });
    const cropped = transform(grid(200, 12), new Random(1));
    expect(cropped.data[0]).toBeGreaterThan(90);
    expect(cropped.data.at(-3)).toBeLessThan(110);
  });

  test("a flip mirrors half of the images", () => {
    const image = grid(5, 3);
    expect([...mirror(image).data.subarray(0, 3)]).toEqual([4, 0, 7]);
    expect(mirror(mirror(image)).data).toEqual(image.data);
    const flips = Array.from(
      { length: 1000 },
      (_, i) => random_horizontal_flip()(image, new Random(i)) !== image,
    );
    expect(flips.filter(Boolean).length).toBeGreaterThan(440);
    expect(flips.filter(Boolean).length).toBeLessThan(560);
  });

  test("the same seed gives the same image", () => {
    const transform = compose(random_resized_crop([16, 16]), random_horizontal_flip());
    const [a, b, c] = [1, 1, 2].map((seed) => transform(grid(64, 48), new Random(seed, 5)));
    expect(a?.data).toEqual(b?.data);
    expect(a?.data).not.toEqual(c?.data);
  });

  test("in evaluation a size by height and width squashes, one by the shortest edge crops the middle", async () => {
    const image = grid(90, 45);
    const squashing = new ViTImageProcessor({ size: { height: 20, width: 24 } });
    const random = new Random(0);
    const squashed = reference_transforms(squashing).eval(image, random);
    expect(squashed.size).toEqual([24, 20]);
    expect((await squashing(squashed)).pixel_values).toEqual((await squashing(image)).pixel_values);
    expect(reference_transforms(squashing).train(image, random).size).toEqual([24, 20]);
    const shortest = new ViTImageProcessor({ size: { shortest_edge: 15 }, resample: 0 });
    const cropped = reference_transforms(shortest).eval(image, random);
    expect(cropped.size).toEqual([15, 15]);
    // 30 wide after the resize: columns 7.5, rounded to 8, to 23, each from the middle of three of the image's.
    expect([cropped.data[0], cropped.data.at(-3)]).toEqual([25, 67]);
  });
});

describe("a folder of images by class", () => {
  const warn = env.warn;
  let directory: TemporaryDirectory;
  beforeEach(async () => {
    env.warn = vi.fn();
    directory = await temporary_directory();
    const image = await read_file("models/fashion/pictures/8-bag.png");
    for (const path of [
      "cat/1.png",
      "cat/deep/er/2.PNG",
      "cat/notes.txt",
      "ant/3.png",
      "ant/.hidden.png",
      ".git/4.png",
    ]) {
      await directory.write(path, image);
    }
  });
  afterEach(async () => {
    env.warn = warn;
    await directory.remove();
  });

  test("classes are its folders, sorted; images lie at any depth", async () => {
    const folder = await ImageFolder.open(directory.target);
    expect(folder.classes).toEqual(["ant", "cat"]);
    expect(folder.examples.map(({ label }) => label)).toEqual(["ant", "cat", "cat"]);
    const { image } = folder.get(2);
    expect((await RawImage.read(image as string | File)).size).toEqual([28, 28]);
  });

  test("a class without images is an error by name, or skipped", async () => {
    await directory.write("bee/readme.md", new Uint8Array(1));
    const error = await error_of(ImageFolder.open(directory.target));
    expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", expect.stringMatching(/class bee/)]);
    const folder = await ImageFolder.open(directory.target, { empty_classes: "skip" });
    expect(folder.classes).toEqual(["ant", "cat"]);
    expect(env.warn).toHaveBeenCalledWith(
      expect.stringMatching(/bee \(skipped 1 file that is not an image: \.md 1\); skipped\./),
    );
    const all = await ImageFolder.open(directory.target, {
      empty_classes: "skip",
      classes: ["cat", "bee", "ant"],
    });
    expect(all.classes).toEqual(["cat", "bee", "ant"]);
    expect((await error_of(ImageFolder.open(directory.target, { classes: ["cat"] }))).message).toMatch(
      /other classes.*ant, bee/,
    );
  });

  test("splitting and taking are seeded, and lose nothing", async () => {
    const names = Array.from({ length: 20 }, (_, i) => ({ image: `${i}.png`, label: "a" }));
    const folder = new ImageFolder(["a"], names);
    const [train, held_out] = folder.split(0.25, 1);
    expect([train.length, held_out.length]).toEqual([15, 5]);
    expect([...train.examples, ...held_out.examples].map(({ image }) => image).sort()).toEqual(
      names.map(({ image }) => image).sort(),
    );
    expect(folder.split(0.25, 1)[1].examples).toEqual(held_out.examples);
    expect(folder.split(0.25, 2)[1].examples).not.toEqual(held_out.examples);
    expect(folder.take(3).length).toBe(3);
    expect(folder.take(99).length).toBe(20);
  });
});
