import {
  type FewShotImageClassificationPipeline,
  MSN_PENALTIES,
  type PipelineOptions,
  pipeline,
  RawImage,
  ViTImageProcessor,
  ViTMSNConfig,
  ViTMSNForImageClassification,
} from "vit-msn";
import { msn_evaluation_processor } from "vit-msn/few-shot";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { temporary_directory } from "../support/directories.ts";
import { read_file } from "../support/files.ts";
import { fixture_files, model_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";

const PIXELS = 28 * 28;
const WIDTH = 128;

let files: Record<string, Uint8Array>;
/** Real held-out images of ten kinds of clothes, a hundred each, and the reference's CLS before the norm. */
let images: RawImage[];
let kinds: Int32Array;
let cls_before_norm: Float32Array;

beforeAll(async () => {
  files = await model_files("models/fashion");
  const tensors = await read_tensors("models/fashion/test1000.safetensors");
  const pixels = tensors.get("pictures")?.data as Uint8Array;
  kinds = tensors.get("labels")?.data as Int32Array;
  cls_before_norm = tensors.get("out.cls_before_norm")?.data as Float32Array;
  images = Array.from(kinds, (_, i) => new RawImage(pixels.slice(i * PIXELS, (i + 1) * PIXELS), 28, 28, 1));
});

/** Images [from, to) of a kind. */
function of_kind(kind: number, from: number, to: number): RawImage[] {
  return images.filter((_, i) => kinds[i] === kind).slice(from, to);
}

const KINDS = { trouser: 1, bag: 8, boot: 9 } as const;

function make(options: PipelineOptions = {}) {
  return pipeline("few-shot-image-classification", files, options);
}

/** Three kinds, four images each. */
async function taught(options: PipelineOptions = {}): Promise<FewShotImageClassificationPipeline> {
  const teach = await make(options);
  for (const [label, kind] of Object.entries(KINDS))
    await teach.add(label, of_kind(kind, 0, 4), { batch_size: 4 });
  return teach;
}

function held_out(count = 4) {
  return Object.fromEntries(
    Object.entries(KINDS).map(([label, kind]) => [label, of_kind(kind, 50, 50 + count)]),
  );
}

describe("teaching", () => {
  let teach: FewShotImageClassificationPipeline;
  beforeAll(async () => {
    teach = await taught();
  });
  afterAll(() => teach.dispose());

  test("custom labels from four images each", async () => {
    const progress: number[] = [];
    const report = await teach.fit({
      penalty: "few",
      progress_callback: ({ done }) => progress.push(done),
    });
    expect(report).toMatchObject({
      method: "logistic_regression",
      labels: ["trouser", "bag", "boot"],
      images: 12,
      train_accuracy: 1,
      penalty: MSN_PENALTIES.few,
      intercept: false,
      converged: true,
    });
    expect(progress).toEqual(Array.from({ length: report.iterations as number }, (_, i) => i + 1));
    const results = await teach(of_kind(KINDS.boot, 60, 61)[0] as RawImage);
    expect(results.map(({ label }) => label).sort()).toEqual(["bag", "boot", "trouser"]);
    expect(results[0]?.label).toBe("boot");
    expect(results.reduce((sum, { score }) => sum + score, 0)).toBeCloseTo(1, 12);
    const lists = await teach([...of_kind(KINDS.bag, 60, 62), ...of_kind(KINDS.trouser, 60, 61)], {
      top_k: 1,
      batch_size: 2,
    });
    expect(lists.map(([best]) => best?.label)).toEqual(["bag", "bag", "trouser"]);
    expect(lists.every((list) => list.length === 1)).toBe(true);
  });

  test("without a penalty, cross-validates; with one image of a label, takes the paper's", async () => {
    const report = await teach.fit();
    expect(report.cross_validation?.length).toBeGreaterThan(3);
    expect(await teach.fit({ penalty: "auto" })).toEqual(report);
    const [id] = await teach.add("shoe", of_kind(KINDS.boot, 20, 21));
    const few = await teach.fit();
    expect([few.penalty, few.cross_validation]).toEqual([MSN_PENALTIES.few, undefined]);
    teach.remove(id as number);
  });

  test("evaluates on other images, and each image by all others", async () => {
    await teach.fit();
    const evaluation = await teach.evaluate(held_out(), { batch_size: 4 });
    expect(evaluation).toMatchObject({ total: 12, labels: ["trouser", "bag", "boot"] });
    expect(evaluation.correct).toBe(
      evaluation.confusion.reduce((sum, row, i) => sum + (row[i] as number), 0),
    );
    expect(evaluation.accuracy).toBeGreaterThan(0.9);
    expect(await teach.evaluate(new Map(Object.entries(held_out())))).toEqual(evaluation);
    const own = await teach.leave_one_out();
    expect(own.total).toBe(12);
    expect(own.accuracy).toBeGreaterThan(0.7);
  });

  test("chooses the penalty by cross-validation", async () => {
    const seen = new Set<string>();
    const report = await teach.fit({
      penalty: "auto",
      penalties: [0.0025, 0.075, 1],
      folds: 4,
      progress_callback: ({ status }) => seen.add(status),
    });
    expect([...seen]).toEqual(["cross_validation", "fit"]);
    expect(report.cross_validation?.map(({ penalty }) => penalty)).toEqual([0.0025, 0.075, 1]);
    expect([0.0025, 0.075, 1]).toContain(report.penalty);
  });

  test.each(["nearest_centroid", "knn"] as const)("%s", async (method) => {
    const report = await teach.fit({ method });
    expect(report).toMatchObject({ method, images: 12 });
    const { accuracy } = await teach.evaluate(held_out());
    expect(accuracy).toBeGreaterThan(0.9);
    expect((await teach.leave_one_out()).accuracy).toBeGreaterThan(0.7);
    const scores = await teach(of_kind(KINDS.bag, 70, 71)[0] as RawImage);
    expect(scores.reduce((sum, { score }) => sum + score, 0)).toBeCloseTo(1, 12);
  });

  test("k-NN leaves the image itself out when it is judged by all others", async () => {
    await teach.fit({ method: "knn", k: 1 });
    const own = await teach.leave_one_out();
    expect(own.total).toBe(12);
    await teach.fit({ method: "knn", k: 12, weights: "uniform" });
    const scores = await teach(of_kind(KINDS.bag, 70, 71)[0] as RawImage);
    expect(scores.map(({ score }) => score)).toEqual([1 / 3, 1 / 3, 1 / 3]);
  });
});

describe("adding and removing", () => {
  test("an image's feature is computed once, whatever is added or removed later", async () => {
    const teach = await make();
    let forwards = 0;
    const { get_image_features } = teach.model;
    teach.model.get_image_features = (...args) => {
      forwards += args[0].pixel_values.dims[0] as number;
      return get_image_features.apply(teach.model, args);
    };
    const [first] = await teach.add("boot", of_kind(KINDS.boot, 0, 1)[0] as RawImage);
    const bags = await teach.add("bag", of_kind(KINDS.bag, 0, 3), { batch_size: 2 });
    expect([first, ...bags]).toEqual([0, 1, 2, 3]);
    await teach.fit();
    expect(teach.needs_fit).toBe(false);
    expect(teach.remove(bags[1] as number)).toBe(1);
    expect(teach.needs_fit).toBe(true);
    expect(teach.examples).toEqual([
      { id: 0, label: "boot" },
      { id: 1, label: "bag" },
      { id: 3, label: "bag" },
    ]);
    await teach.fit({ method: "nearest_centroid" });
    expect(await teach.add("boot", of_kind(KINDS.boot, 1, 2))).toEqual([4]);
    await teach.fit();
    await teach.leave_one_out();
    expect(forwards).toBe(5);
    expect(teach.remove("bag")).toBe(2);
    expect(teach.labels).toEqual(["boot"]);
    await teach.dispose();
  });

  test("features are the reference's, centred and at length 1", async () => {
    const teach = await make();
    const directory = await temporary_directory();
    await teach.add("any", images.slice(0, 3), { batch_size: 3 });
    await teach.save(directory.target);
    const saved = await directory.read_files();
    const bytes = saved["few_shot.safetensors"] as Uint8Array;
    const header_length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + header_length)));
    const { data_offsets, shape } = header["examples.features"];
    expect(shape).toEqual([3, WIDTH]);
    const start = 8 + header_length + data_offsets[0];
    const found = new Float32Array(bytes.slice(start, 8 + header_length + data_offsets[1]).buffer);
    for (let i = 0; i < 3; i++) {
      const cls = cls_before_norm.subarray(i * WIDTH, (i + 1) * WIDTH);
      const mean = cls.reduce((sum, x) => sum + x, 0) / WIDTH;
      const length = Math.hypot(...cls.map((x) => x - mean));
      const expected = cls.map((x) => (x - mean) / length);
      expect(max_difference(found.subarray(i * WIDTH, (i + 1) * WIDTH), expected)).toBeLessThan(1e-5);
    }
    await Promise.all([teach.dispose(), directory.remove()]);
  });

  test("cls_mean is both tokens' features, each normalised, and is saved and loaded", async () => {
    const teach = await taught({ features: "cls_mean" });
    const [image] = images as [RawImage];
    const { pixel_values } = await teach.processor(image);
    const features = (pool: "cls" | "mean" | "cls_mean") =>
      teach.model.get_image_features({ pixel_values }, pool, { before_norm: true });
    const both = await features("cls_mean");
    expect(both.dims).toEqual([1, 2 * WIDTH]);
    const parts = [...(await features("cls")).data, ...(await features("mean")).data];
    expect([...both.data]).toEqual(parts);
    await teach.fit();
    const directory = await temporary_directory();
    await teach.save(directory.target);
    const again = await make();
    await again.load(await directory.read_files());
    expect(again.feature_options).toEqual({ features: "cls_mean", normalize: true });
    expect(await again(image)).toEqual(await teach(image));
    expect((await error_of(teach.export_model("nowhere"))).code).toBe("UNSUPPORTED");
    await Promise.all([teach.dispose(), again.dispose(), directory.remove()]);
  });

  test("the paper's evaluation preprocessing resizes the shorter side and crops the centre", async () => {
    const config = ViTMSNConfig.preset("vit-msn-small");
    const processor = msn_evaluation_processor(config);
    expect({ ...processor }).toMatchObject({
      size: { shortest_edge: 256 },
      crop_size: { height: 224, width: 224 },
      do_center_crop: true,
      resample: 2,
      image_mean: [0.485, 0.456, 0.406],
    });
    const wide = new RawImage(new Uint8Array(600 * 300 * 3), 600, 300, 3);
    expect((await processor(wide)).pixel_values.dims).toEqual([1, 3, 224, 224]);
  });

  test("all images of a call are added, or none", async () => {
    const teach = await make();
    const bad = new Uint8Array([1, 2, 3]);
    const error = await error_of(teach.add("bag", [of_kind(KINDS.bag, 0, 1)[0] as RawImage, bad]));
    expect(error.code).toBe("INVALID_IMAGE");
    expect(teach.examples).toEqual([]);
    const controller = new AbortController();
    const adding = teach.add("bag", of_kind(KINDS.bag, 0, 3), {
      signal: controller.signal,
      progress_callback: () => controller.abort(),
    });
    expect((await error_of(adding)).code).toBe("ABORTED");
    expect(teach.examples).toEqual([]);
    await teach.dispose();
  });

  test.each([
    ["cls", true],
    ["cls", false],
    ["mean", true],
    ["mean_before_norm", true],
    ["cls_before_norm", false],
    ["cls_mean", true],
    ["cls_mean", false],
  ] as const)("features %s, normalised: %s", async (features, normalize) => {
    const teach = await taught({ features, normalize });
    expect(teach.feature_options).toEqual({ features, normalize });
    const report = await teach.fit({ penalty: normalize ? 0.0025 : 1 });
    expect([report.converged, report.train_accuracy]).toEqual([true, 1]);
    expect((await teach.evaluate(held_out())).accuracy).toBeGreaterThan(0.8);
    await teach.fit({ method: "nearest_centroid" });
    expect((await teach.evaluate(held_out())).accuracy).toBeGreaterThan(0.8);
    await teach.dispose();
  });
});

describe("refusals", () => {
  test("name what is wrong", async () => {
    const teach = await make();
    const boots = of_kind(KINDS.boot, 0, 2);
    const refused = async (promise: Promise<unknown>, words: RegExp) => {
      const error = await error_of(promise);
      expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", expect.stringMatching(words)]);
    };
    await refused(teach(boots), /call fit\(\)/);
    await refused(teach.evaluate({ boot: boots }), /call fit\(\)/);
    await refused(teach.leave_one_out(), /call fit\(\)/);
    await refused(teach.fit(), /there are none yet/);
    await refused(teach.save("nowhere"), /nothing to save/);
    await refused(teach.add("", boots), /label/);
    await refused(teach.add("boot", []), /empty/);
    await refused(teach.add(7 as never, boots), /label/);
    await refused((async () => teach.remove("boot"))(), /no image/);
    await teach.add("boot", boots);
    await refused(teach.fit(), /only "boot"/);
    await teach.add("bag", of_kind(KINDS.bag, 0, 1));
    await refused(teach.fit({ method: "svm" as never }), /svm/);
    await refused(teach.fit({ penalty: 0 }), /above 0/);
    await refused(teach.fit({ penalty: Number.NaN }), /above 0/);
    await refused(teach.fit({ penalty: "small" as never }), /"few", "percent", "code"/);
    await refused(teach.fit({ penalty: "auto" }), /"bag" has one/);
    await refused(teach.fit({ penalty: "auto", penalties: [] }), /penalties/);
    await refused(teach.fit({ folds: 1, penalty: "auto" }), /folds/);
    await refused(teach.fit({ intercept: 1 as never }), /intercept/);
    await refused(teach.fit({ method: "knn", k: 0 }), /k must/);
    await refused(teach.fit({ method: "knn", penalty: 1 }), /fit by knn has no option "penalty"/);
    await refused(teach.fit({ method: "nearest_centroid", temperature: -1 }), /temperature/);
    await teach.fit();
    await refused(teach.evaluate({ shoe: boots }), /doesn't know the label "shoe"/);
    await refused(teach.evaluate({}), /at least one image/);
    await refused(teach(boots, { top_k: 0 }), /top_k/);
    expect((await error_of(teach.fit({ signal: AbortSignal.abort() }))).code).toBe("ABORTED");
    // One image of a label, left out, can only be wrong.
    expect(await teach.leave_one_out()).toMatchObject({ total: 3 });
    await teach.dispose();
  });

  test("unknown features, and features that aren't numbers", async () => {
    expect((await error_of(make({ features: "patch" as never }))).code).toBe("INVALID_ARGUMENT");
    expect((await error_of(make({ normalize: 1 as never }))).code).toBe("INVALID_ARGUMENT");
    const teach = await make();
    const { get_image_features } = teach.model;
    teach.model.get_image_features = async (...args) => {
      const features = await get_image_features.apply(teach.model, args);
      features.data[3] = Number.NaN;
      return features;
    };
    const error = await error_of(teach.add("bag", of_kind(KINDS.bag, 0, 1)));
    expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining("NaN")]);
    await teach.dispose();
  });

  test("dispose ends it and frees everything, also in the middle", async () => {
    const teach = await taught();
    await teach.fit();
    const adding = error_of(teach.add("bag", of_kind(KINDS.bag, 4, 20)));
    await teach.dispose();
    expect((await adding).code).toBe("DISPOSED");
    for (const call of [
      () => teach(images[0] as RawImage),
      () => teach.add("bag", images[0] as RawImage),
      () => teach.fit(),
      () => teach.save("nowhere"),
      () => teach.load({}),
      () => teach.export_model("nowhere"),
    ]) {
      expect((await error_of(call())).code).toBe("DISPOSED");
    }
    expect(teach.examples).toEqual([]);
  });

  test("a call leaves no handle behind", async () => {
    const teach = await taught();
    const before = teach.model.memory().handles;
    await teach.fit();
    await teach(images.slice(0, 3), { batch_size: 2 });
    await teach.leave_one_out();
    expect(teach.model.memory().handles).toBe(before);
    await teach.dispose();
  });
});

describe("save and load", () => {
  test.each(["logistic_regression", "nearest_centroid", "knn"] as const)(
    "%s comes back exactly",
    async (method) => {
      const directory = await temporary_directory();
      const teach = await taught({ features: "cls" });
      await teach.fit({ method });
      await teach.save(directory.target);
      const saved = await directory.read_files();
      expect(Object.keys(saved).sort()).toEqual(["few_shot.json", "few_shot.safetensors"]);
      const again = await make();
      await again.load(saved);
      expect(again.feature_options).toEqual({ features: "cls", normalize: true });
      expect(again.examples).toEqual(teach.examples);
      expect(again.needs_fit).toBe(false);
      const some = images.slice(0, 5);
      expect(await again(some)).toEqual(await teach(some));
      expect(await again.leave_one_out()).toEqual(await teach.leave_one_out());
      expect(await again.add("shirt", of_kind(6, 0, 2))).toEqual([12, 13]);
      expect(again.needs_fit).toBe(true);
      await again.fit();
      expect((await again(of_kind(6, 5, 6)[0] as RawImage)).map(({ label }) => label)).toContain("shirt");
      await Promise.all([teach.dispose(), again.dispose(), directory.remove()]);
    },
  );

  test("without features, only the head comes back", async () => {
    const directory = await temporary_directory();
    const teach = await taught();
    await teach.fit();
    await teach.save(directory.target, { keep_features: false });
    const again = await make({ dtype: "int8" }); // the same backbone
    await again.load(await directory.read_files());
    expect(again.examples).toEqual([]);
    expect((await again(of_kind(KINDS.boot, 60, 61)[0] as RawImage))[0]?.label).toBe("boot");
    await Promise.all([teach.dispose(), again.dispose(), directory.remove()]);
  });

  test("another backbone is refused", async () => {
    const directory = await temporary_directory();
    const teach = await taught();
    await teach.fit();
    await teach.save(directory.target);
    const saved = await directory.read_files();
    const other = await pipeline("few-shot-image-classification", await fixture_files("backbone"));
    const error = await error_of(other.load(saved));
    expect([error.code, error.message]).toEqual([
      "CHECKPOINT_MISMATCH",
      expect.stringContaining("128 values"),
    ]);
    await other.dispose();
    // The same shape, other pixels: as a wrong preprocessor_config.json gives them.
    const config = JSON.parse(new TextDecoder().decode(files["preprocessor_config.json"]));
    const odd = new TextEncoder().encode(
      JSON.stringify({ ...config, image_std: [0.05, 0.05, 0.05], image_mean: [2, 0, 1] }),
    );
    const wrong = await pipeline("few-shot-image-classification", {
      ...files,
      "preprocessor_config.json": odd,
    });
    expect((await error_of(wrong.load(saved))).code).toBe("CHECKPOINT_MISMATCH");
    await Promise.all([teach.dispose(), wrong.dispose(), directory.remove()]);
  });

  test("damaged files are typed errors, and what was taught stays", async () => {
    const directory = await temporary_directory();
    const teach = await taught();
    await teach.fit();
    await teach.save(directory.target);
    const saved = await directory.read_files();
    const tensors = saved["few_shot.safetensors"] as Uint8Array;
    const settings = JSON.parse(new TextDecoder().decode(saved["few_shot.json"]));
    const json = (value: unknown) =>
      new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));
    const with_settings = (changes: object) => ({
      ...saved,
      "few_shot.json": json({ ...settings, ...changes }),
    });
    const { head, examples } = settings;
    const with_nan = tensors.slice();
    with_nan.fill(0xff, tensors.length - 8);
    const damaged: [Record<string, Uint8Array>, string][] = [
      [{}, "NOT_FOUND"],
      [{ "few_shot.json": saved["few_shot.json"] as Uint8Array }, "NOT_FOUND"],
      [{ ...saved, "few_shot.json": json('{"format":') }, "INVALID_CONFIG"],
      [{ ...saved, "few_shot.json": json("[]") }, "INVALID_CONFIG"],
      [{ ...saved, "few_shot.safetensors": tensors.slice(0, -4) }, "INVALID_CHECKPOINT"],
      [{ ...saved, "few_shot.safetensors": with_nan }, "INVALID_CHECKPOINT"],
      [with_settings({ format: "other" }), "INVALID_CHECKPOINT"],
      [with_settings({ version: 2 }), "INVALID_CHECKPOINT"],
      [with_settings({ features: "toString" }), "INVALID_CHECKPOINT"],
      [with_settings({ normalize: "yes" }), "INVALID_CHECKPOINT"],
      [with_settings({ needs_fit: null }), "INVALID_CHECKPOINT"],
      [with_settings({ hidden_size: 64 }), "INVALID_CHECKPOINT"],
      [with_settings({ head: [] }), "INVALID_CHECKPOINT"],
      [with_settings({ head: { ...head, method: "svm" } }), "INVALID_CHECKPOINT"],
      [with_settings({ head: { ...head, labels: ["a", "a", "b"] } }), "INVALID_CHECKPOINT"],
      [with_settings({ head: { ...head, labels: ["a", "b"] } }), "INVALID_CHECKPOINT"],
      [with_settings({ head: { ...head, method: "knn" } }), "INVALID_CHECKPOINT"],
      [with_settings({ head: { ...head, options: { penalty: -1 } } }), "INVALID_CHECKPOINT"],
      [with_settings({ examples: { ...examples, ids: [1, 1] } }), "INVALID_CHECKPOINT"],
      [
        with_settings({ examples: { ...examples, classes: examples.classes.map(() => 5) } }),
        "INVALID_CHECKPOINT",
      ],
      [with_settings({ examples: { ...examples, labels: ["a", "", "c"] } }), "INVALID_CHECKPOINT"],
    ];
    const as_text = Array.from(tensors, (byte) => String.fromCharCode(byte)).join("");
    const integers = Uint8Array.from(as_text.replaceAll('"F32"', '"I32"'), (char) => char.charCodeAt(0));
    const no_floats = await error_of(teach.load({ ...saved, "few_shot.safetensors": integers }));
    expect(no_floats.message).toMatch(/must be float32, but it is I32/);
    const before = await teach(images[0] as RawImage);
    for (const [map, code] of damaged)
      expect((await error_of(teach.load(map))).code, JSON.stringify(Object.keys(map))).toBe(code);
    expect(await teach(images[0] as RawImage)).toEqual(before);
    expect(teach.examples).toHaveLength(12);
    await Promise.all([teach.dispose(), directory.remove()]);
  });
});

describe("export_model", () => {
  test.each([
    ["cls_before_norm", true, "logistic_regression", false],
    ["cls_before_norm", true, "logistic_regression", true],
    ["cls_before_norm", true, "nearest_centroid", undefined],
    ["cls", false, "logistic_regression", true],
    ["cls", false, "nearest_centroid", undefined],
  ] as const)(
    "%s, normalised: %s, %s, intercept: %s: a classifier with the same scores",
    async (features, normalize, method, intercept) => {
      const directory = await temporary_directory();
      const teach = await taught({ features, normalize });
      await teach.fit(method === "logistic_regression" ? { method, intercept, penalty: 0.075 } : { method });
      await teach.export_model(directory.target);
      const exported = await directory.read_files();
      expect(Object.keys(exported).sort()).toEqual([
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
      ]);
      const classify = await pipeline("image-classification", exported);
      expect(classify.model).toBeInstanceOf(ViTMSNForImageClassification);
      expect(classify.processor).toBeInstanceOf(ViTImageProcessor);
      expect(classify.model.config.id2label).toEqual({ 0: "trouser", 1: "bag", 2: "boot" });
      const some = images.filter((_, i) => i % 50 === 3);
      const [own, other] = [await teach(some), await classify(some)];
      for (const [i, list] of own.entries()) {
        expect(other[i]?.map(({ label }) => label)).toEqual(list.map(({ label }) => label));
        for (const [j, { score }] of list.entries()) expect(other[i]?.[j]?.score).toBeCloseTo(score, 4);
      }
      await Promise.all([teach.dispose(), classify.dispose(), directory.remove()]);
    },
  );

  /** Recorded by test/reference/check_exported_head.py, which teaches and exports the same. */
  test.each([
    ["cls_before_norm", {}, {}],
    ["cls", { features: "cls", normalize: false }, { intercept: true, penalty: 1 }],
  ] as const)(
    "%s: the logits that Hugging Face transformers gives for it",
    async (name, features, options) => {
      const recorded = JSON.parse(
        new TextDecoder().decode(await read_file("test/fixtures/few_shot/exported_logits.json")),
      );
      const own = await Promise.all(
        recorded.images.map((file: string) => read_file(`models/fashion/pictures/${file}`)),
      );
      const teach = await make(features);
      for (const [label, kinds] of Object.entries({ bag: [8], shoe: [5, 7, 9], top: [0, 2, 4, 6] }))
        await teach.add(
          label,
          kinds.map((kind) => own[kind]),
        );
      await teach.fit(options);
      const directory = await temporary_directory();
      await teach.export_model(directory.target);
      const { model, processor } = await pipeline("image-classification", await directory.read_files());
      const { pixel_values } = await processor(own);
      const { logits } = await model.forward({ pixel_values });
      expect(max_difference(logits.data, recorded.logits[name].flat())).toBeLessThan(1e-4);
      await Promise.all([teach.dispose(), model.dispose(), directory.remove()]);
    },
  );

  test("a layernorm that loses a part of its input is replaced", async () => {
    // weight[0] = 0: the classifier's input has nothing of feature 0.
    const layernorm = await zero_layernorm_weight(files["model.safetensors"] as Uint8Array);
    const teach = await pipeline("few-shot-image-classification", {
      ...files,
      "model.safetensors": layernorm,
    });
    for (const [label, kind] of Object.entries(KINDS)) await teach.add(label, of_kind(kind, 0, 4));
    await teach.fit();
    const directory = await temporary_directory();
    await teach.export_model(directory.target);
    const classify = await pipeline("image-classification", await directory.read_files());
    const some = images.filter((_, i) => i % 100 === 3);
    const [own, other] = [await teach(some), await classify(some)];
    for (const [i, list] of own.entries()) {
      for (const [j, { score }] of list.entries()) expect(other[i]?.[j]?.score).toBeCloseTo(score, 4);
    }
    await Promise.all([teach.dispose(), classify.dispose(), directory.remove()]);
  });

  test("is refused where no classifier gives the same scores", async () => {
    for (const [options, method] of [
      [{}, "knn"],
      [{ features: "mean" }, "logistic_regression"],
      [{ features: "cls" }, "logistic_regression"],
      [{ normalize: false }, "logistic_regression"],
    ] as const) {
      const teach = await taught(options);
      await teach.fit(method === "knn" ? { method } : { method, penalty: 1 });
      const error = await error_of(teach.export_model("nowhere"));
      expect([error.code, error.message]).toEqual([
        "UNSUPPORTED",
        expect.stringContaining("can't be exported"),
      ]);
      await teach.dispose();
    }
  });
});

async function zero_layernorm_weight(file: Uint8Array): Promise<Uint8Array> {
  const bytes = file.slice();
  const view = new DataView(bytes.buffer);
  const header_length = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + header_length)));
  const key = Object.keys(header).find((name) => /^(vit\.)?layernorm\.weight$/.test(name)) as string;
  view.setFloat32(8 + header_length + header[key].data_offsets[0], 0, true);
  return bytes;
}
