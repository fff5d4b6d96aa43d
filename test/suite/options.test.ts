import {
  env,
  ImageClassificationPipeline,
  ImageFeatureExtractionPipeline,
  pipeline,
  RawImage,
  Tensor,
  ViTImageProcessor,
  ViTMSNConfig,
  ViTMSNForImageClassification,
  ViTMSNModel,
  type VitMsnError,
} from "vit-msn";
import {
  EarlyStoppingCallback,
  ImageFolder,
  MSNPretrainer,
  random_resized_crop,
  Trainer,
} from "vit-msn/training";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { read_file } from "../support/files.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";

// Whatever is wrong about an option or an argument is an INVALID_ARGUMENT that names it.

const sizes = { image_size: 8, patch_size: 4, hidden_size: 16, num_attention_heads: 2 };
const small = { ...sizes, num_hidden_layers: 1, intermediate_size: 32, num_labels: 3 };
const image = new RawImage(new Uint8Array(8 * 8 * 3).fill(90), 8, 8, 3);
const pixels = () => new Tensor("float32", new Float32Array(192).fill(0.5), [1, 3, 8, 8]);
let model: ViTMSNForImageClassification;
let processor: ViTImageProcessor;
let classify: ImageClassificationPipeline;
let extract: ImageFeatureExtractionPipeline;
let files: Awaited<ReturnType<typeof fixture_files>>;

beforeAll(async () => {
  files = await fixture_files("tiny");
  model = await ViTMSNForImageClassification.from_config(small, { device: "wasm" });
  processor = new ViTImageProcessor({ size: 8 });
  classify = new ImageClassificationPipeline(model, processor);
  extract = new ImageFeatureExtractionPipeline(model.vit, processor, false);
});
afterAll(() => model.dispose());
beforeEach(() => {
  vi.spyOn(env, "warn").mockImplementation(() => {});
});
afterEach(() => vi.restoreAllMocks());

/** What a call throws or rejects with. */
const refusal = (call: () => unknown) => error_of(Promise.resolve().then(call));

type Options = Record<string, unknown>;
/** Everything that takes options, with those that it has and their types. */
const text = "text";
const flag = "flag";
const count = "count";
const callback = "function";
const signal = "signal";
const choice = "choice";
const SAVE = { signal, progress_callback: callback };
const LOAD = {
  ...SAVE,
  revision: text,
  subfolder: text,
  cache_dir: text,
  local_files_only: flag,
  token: text,
};
const MODEL = {
  device: choice,
  num_threads: count,
  worker: flag,
  wasm: choice,
  dtype: choice,
  attn_implementation: choice,
  seed: "number",
};
const PRETRAINED = { ...LOAD, ...MODEL, config: "record", ignore_mismatched_sizes: flag };
const CALL = { batch_size: count, signal };
const READ = { max_pixels: count, signal };
const PLACES: Record<string, { call: (options: never) => unknown; options: Record<string, string> }> = {
  "ViTMSNModel.from_pretrained": {
    call: (options) => ViTMSNModel.from_pretrained(files, options),
    options: PRETRAINED,
  },
  "ViTMSNConfig.from_pretrained": {
    call: (options) => ViTMSNConfig.from_pretrained(files, options),
    options: LOAD,
  },
  "ViTImageProcessor.from_pretrained": {
    call: (options) => ViTImageProcessor.from_pretrained(files, options),
    options: LOAD,
  },
  from_config: {
    call: (options) => ViTMSNModel.from_config(small, options),
    options: { ...MODEL, use_mask_token: flag },
  },
  pipeline: {
    call: (options) => pipeline("image-feature-extraction", files, options),
    options: { ...PRETRAINED, pool: choice, image_processor: "record" },
  },
  "image-classification": {
    call: (options) => classify(image, options),
    options: { ...CALL, top_k: "count or null", function_to_apply: "choice or null" },
  },
  "image-feature-extraction": {
    call: (options) => extract(image, options),
    options: { ...CALL, pool: choice },
  },
  forward: {
    call: (options: Options) => model.forward({ pixel_values: pixels(), ...options }),
    options: {
      bool_masked_pos: "numbers",
      visible_patches: "numbers",
      labels: "numbers",
      interpolate_pos_encoding: flag,
      output_attentions: flag,
      output_hidden_states: flag,
      signal,
    },
  },
  get_image_features: {
    call: (options) => model.vit.get_image_features({ pixel_values: pixels() }, "cls", options),
    options: { before_norm: flag },
  },
  "processor(images)": {
    call: (options) => processor(image, options),
    options: { ...READ, device: "record" },
  },
  "RawImage.read": { call: (options) => RawImage.read(image, options), options: READ },
  "RawImage.fromBlob": { call: (options) => RawImage.fromBlob(new Blob(["x"]), options), options: READ },
  resize: { call: (options) => image.resize(4, 4, options), options: { resample: choice } },
};

/** Values of wrong types, by the type that they aren't. */
const WRONG: readonly (readonly [unknown, readonly string[]])[] = [
  [3, ["count", "count or null", "number"]],
  [-1, ["number"]],
  [Number.NaN, []],
  ["1", ["text"]],
  [null, ["count or null", "choice or null"]],
  [Symbol("s"), []],
  [() => 1, ["function"]],
  [[], ["numbers"]],
  [10n, []],
  [new Date(0), ["record"]],
  [true, ["flag", "choice"]],
];

describe.each(Object.entries(PLACES))("%s", (where, { call, options }) => {
  test.each(Object.entries(options))("refuses values of other types for %s", async (name, type) => {
    for (const [value, kinds] of WRONG) {
      if (kinds.includes(type) || (name === "resample" && value === 3)) continue;
      const error = await refusal(() => call({ [name]: value } as never));
      expect([where, error.code, error.message], String(value)).toEqual([
        where,
        "INVALID_ARGUMENT",
        expect.stringContaining(name === "image_processor" ? "image_processor" : name),
      ]);
    }
  });

  test("names an unknown option, and what takes none but an object", async () => {
    const error = await refusal(() => call({ colour: 1 } as never));
    expect([error.code, error.message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining('"colour"')]);
    expect(error.details).toEqual({ argument: "colour" });
    if (where === "forward") return;
    for (const value of [null, 3, "x", [], Symbol("s")])
      expect((await refusal(() => call(value as never))).code).toBe("INVALID_ARGUMENT");
  });

  test("takes an option that is undefined as left out", async () => {
    const nothing = Object.fromEntries(Object.keys(options).map((name) => [name, undefined]));
    const result = await Promise.resolve()
      .then(() => call({ ...nothing, colour: undefined } as never))
      .catch((error: VitMsnError) => error.code);
    expect(result).not.toBe("INVALID_ARGUMENT");
    if (result instanceof ViTMSNModel || result instanceof ImageFeatureExtractionPipeline)
      await result.dispose();
  });
});

describe("names that are nearly right, or another package's", () => {
  const load = (options: Options) => ViTMSNModel.from_pretrained(files, options);
  const make = (options: Options) => pipeline("image-classification", files, options);
  test.each<[string, string, () => unknown]>([
    ["topk", "top_k", () => classify(image, { topk: 1 } as never)],
    ["topK", "top_k", () => classify(image, { topK: 1 } as never)],
    ["batchSize", "batch_size", () => classify(image, { batchSize: 1 } as never)],
    ["pooling", "pool", () => extract(image, { pooling: "mean" } as never)],
    ["topk", "top_k in the pipeline's call", () => make({ topk: 1 })],
    ["quantized", 'dtype: "int8"', () => make({ quantized: true })],
    ["session_options", "num_threads", () => make({ session_options: {} })],
    ["localFilesOnly", "local_files_only", () => load({ localFilesOnly: true })],
    ["cacheDir", "cache_dir", () => load({ cacheDir: "/tmp" })],
    ["device_map", "device", () => load({ device_map: "auto" })],
    ["torch_dtype", "dtype", () => load({ torch_dtype: "float16" })],
    ["use_auth_token", "token", () => load({ use_auth_token: "x" })],
    ["num_thread", "num_threads", () => load({ num_thread: 2 })],
    ["threads", "num_threads", () => load({ threads: 2 })],
    ["divice", "device", () => load({ divice: "wasm" })],
    [
      "output_attention",
      "output_attentions",
      () => model({ pixel_values: pixels(), output_attention: true } as never),
    ],
    ["pixel_value", "pixel_values", () => model({ pixel_value: pixels() } as never)],
    ["do_resiz", "do_resize", () => processor(image, { do_resiz: false } as never)],
    ["do_resiz", "do_resize", () => new ViTImageProcessor({ do_resiz: false } as never)],
    ["hiden_size", "hidden_size", () => new ViTMSNConfig({ hiden_size: 48 } as never)],
    ["hiden_size", "hidden_size", () => ViTMSNModel.from_config({ hiden_size: 48 } as never)],
    ["hiden_size", "hidden_size", () => ViTMSNConfig.preset("vit-msn-small", { hiden_size: 48 } as never)],
    ["num_label", "num_labels", () => load({ config: { num_label: 3 } })],
  ])("%s: use %s", async (name, advice, call) => {
    const { code, message } = await refusal(call);
    expect([code, message]).toEqual([
      "INVALID_ARGUMENT",
      expect.stringContaining(`${JSON.stringify(name)}; use ${advice}`),
    ]);
  });

  test("an option of another task is unknown", async () => {
    const { message } = await refusal(() => make({ pool: "cls" }));
    expect(message).toContain('pipeline("image-classification") has no option "pool"');
  });

  test("loading options are refused for a model that is loaded", async () => {
    const options = { image_processor: processor, dtype: "int8" as const };
    const { code, message } = await refusal(() => pipeline("image-classification", model, options));
    expect([code, message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining('"dtype"')]);
  });

  test("unknown fields of files are kept", async () => {
    const json = { ...small, model_type: "vit_msn", hiden_size: 3 };
    expect(new ViTMSNConfig(json).extra).toEqual({ hiden_size: 3 });
    const settings = { image_processor_type: "ViTImageProcessor", do_resiz: 1 };
    expect(new ViTImageProcessor(settings).to_dict()).toMatchObject(settings);
  });

  test("what an image processor returns goes into a model as it is", async () => {
    expect((await model(await processor(image))).logits.dims).toEqual([1, 3]);
  });
});

describe("env", () => {
  test.each([
    ["allowRemoteModels", "allow_remote_models"],
    ["cacheDir", "cache_dir"],
    ["remoteHost", "remote_host"],
    ["localModelPath", "a folder's path as the model"],
    ["allowLocalModels", "a folder's path as the model"],
    ["useBrowserCache", "env.use_cache"],
    ["useFSCache", "env.use_cache"],
  ])("has no %s: use %s", async (name, advice) => {
    for (const set of [() => Object.assign(env, { [name]: "x" }), () => Reflect.set(env, name, "x")]) {
      const { code, message } = await refusal(set);
      expect([code, message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining(`use ${advice}`)]);
    }
    expect(name in env).toBe(false);
  });

  test("names what replaces transformers.js' backends", async () => {
    const set = () => {
      (
        env as unknown as { backends: { onnx: { wasm: { numThreads: number } } } }
      ).backends.onnx.wasm.numThreads = 1;
    };
    expect((await refusal(set)).message).toContain("num_threads");
  });

  test("refuses values of other types, and keeps what it had", async () => {
    const names = [
      "remote_host",
      "remote_path_template",
      "allow_remote_models",
      "use_cache",
      "cache_dir",
      "cache_key",
    ];
    for (const name of [...names, "fetch", "warn", "wasm", "decode", "webgpu"]) {
      const before: unknown = Reflect.get(env, name);
      for (const value of [3, null, Symbol("s"), Number.NaN, []]) {
        const { code, message } = await refusal(() => Object.assign(env, { [name]: value }));
        expect([code, message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining(name)]);
      }
      expect(Reflect.get(env, name)).toBe(before);
    }
    expect((await refusal(() => Object.assign(env.webgpu, { allowSoftware: true }))).message).toContain(
      "allow_software",
    );
    expect((await refusal(() => Object.assign(env, { webgpu: { gpus: 1 } }))).message).toContain('"gpus"');
    expect((await refusal(() => Object.assign(env.webgpu, { gpu: 3 }))).message).toContain("gpu");
  });

  test("takes back undefined where that is the default", () => {
    for (const name of ["cache_dir", "wasm", "decode"]) Object.assign(env, { [name]: undefined });
    Object.assign(env.webgpu, { gpu: undefined, allow_software: undefined });
    expect([env.cache_dir, env.webgpu.gpu]).toEqual([undefined, undefined]);
    const saved = { ...env };
    Object.assign(env, saved);
    expect({ ...env }).toEqual(saved);
  });
});

describe("training", () => {
  const trainer = (options: Options) => new Trainer({ model, ...options } as never);
  test.each<[string, () => unknown]>([
    ["use train_dataset", () => trainer({ train_datset: [] })],
    ["use eval_dataset", () => trainer({ eval_datset: [] })],
    ["use train_transform", () => trainer({ train_transforms: () => image })],
    ["use compute_loss", () => trainer({ compute_loss_func: () => 0 })],
    ["use args.optim", () => trainer({ optimizers: [] })],
    ["use image_processor", () => trainer({ tokenizer: {} })],
    ["use learning_rate", () => trainer({ args: { learning_rat: 1 } })],
    ["Training needs an object", () => trainer({ args: 3 })],
    ["callbacks", () => trainer({ callbacks: {} })],
    ["callback", () => trainer({ callbacks: [3] })],
    ["compute_metrics", () => trainer({ compute_metrics: "accuracy" })],
    ["model", () => trainer({ model: {} })],
    ["use resume_from_checkpoint", () => trainer({}).train({ resume_from_checkpoin: true } as never)],
    ["signal", () => trainer({}).train({ signal: 3 } as never)],
    ["metric_key_prefix", () => trainer({}).evaluate([], { metric_key_prefix: 3 } as never)],
    ["use train_dataset", () => new MSNPretrainer({ model: model.vit, train_data: [] } as never)],
    ["use callbacks", () => new MSNPretrainer({ model: model.vit, callback: [] } as never)],
    ["object", () => new MSNPretrainer(null as never)],
    ["use early_stopping_patience", () => new EarlyStoppingCallback({ patience: 1 } as never)],
    ["scale", () => random_resized_crop([8, 8], { scale: 1 } as never)],
    ["use empty_classes", () => ImageFolder.open("x", { empty_clases: "skip" } as never)],
  ])("says: %s", async (advice, call) => {
    const { code, message } = await refusal(call);
    expect([code, message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining(advice)]);
  });
});

describe("arguments", () => {
  test.each([null, 3, Symbol("s"), Number.NaN, [], () => 1, new Uint8Array(3), new Blob(["x"])])(
    "no model: %o",
    async (source) => {
      for (const load of [
        () => pipeline("image-classification", source as never),
        () => ViTMSNModel.from_pretrained(source as never),
        () => ViTImageProcessor.from_pretrained(source as never),
      ])
        expect((await refusal(load)).code).toBe("INVALID_ARGUMENT");
    },
  );

  test.each([null, undefined, 3, Number.NaN, Symbol("s"), {}, () => 1, Object.create(null)])(
    "no image: %o",
    async (value) => {
      for (const read of [
        () => RawImage.read(value as never),
        () => RawImage.fromURL(value as never),
        () => RawImage.fromBlob(value as never),
        () => RawImage.fromCanvas(value as never),
        () => processor(value as never),
        () => processor([value] as never),
        () => classify(value as never),
        () => new RawImage(value as never, 1, 1, 3),
      ])
        expect((await refusal(read)).code).toBe("INVALID_ARGUMENT");
    },
  );

  test.each([null, 3, "x", Symbol("s"), [1, "2", 3, 4], [Symbol("s"), 0, 0, 0], {}])(
    "no box, size or channels: %o",
    async (value) => {
      for (const change of [
        () => image.crop(value as never),
        () => image.resize(value as never, 0),
        () => image.center_crop(value as never, 1.5),
        () => image.convert((value === 3 ? 5 : value) as never),
      ])
        expect((await refusal(change)).code).toBe("INVALID_ARGUMENT");
    },
  );

  test.each([null, undefined, 3, "x", Symbol("s"), []])("no inputs: %o", async (inputs) => {
    for (const call of [() => model(inputs as never), () => model.vit.get_image_features(inputs as never)])
      expect((await refusal(call)).code).toBe("INVALID_ARGUMENT");
    expect((await refusal(() => model({ pixel_values: inputs as never }))).code).toBe("INVALID_ARGUMENT");
  });

  test.each([
    ["float32", ["1"]],
    ["float32", [Symbol("s")]],
    ["float32", [undefined]],
    ["int64", [1.5]],
    ["int64", [Number.NaN]],
    ["int32", [2 ** 31]],
    ["int32", [0.5]],
    ["uint8", [256]],
    ["bool", [2]],
    ["constructor", [1]],
  ])("no %s tensor of %o", async (type, data) => {
    const { code } = await refusal(() => new Tensor(type as never, data as never, [1]));
    expect(code).toBe("INVALID_ARGUMENT");
  });

  test.each([
    [{ labels: [Symbol("s")] }],
    [{ labels: ["1"] }],
    [{ labels: [null] }],
    [{ visible_patches: [[0, 1], 3] }],
    [{ visible_patches: [[0], null] }],
    [{ visible_patches: [Symbol("s")] }],
    [{ bool_masked_pos: [null] }],
    [{ bool_masked_pos: [3] }],
    [{ bool_masked_pos: [["0", "1", "0", "0"]] }],
    [{ bool_masked_pos: [[Symbol("s"), 1, 0, 0]] }],
  ])("no inputs %o", async (more) => {
    const masked = await ViTMSNForImageClassification.from_config(small, {
      device: "wasm",
      use_mask_token: true,
    });
    const { code } = await refusal(() => masked({ pixel_values: pixels(), ...(more as object) }));
    expect(code).toBe("INVALID_ARGUMENT");
    await masked.dispose();
  });

  test.each([{}, { createComputePipeline: () => 1 }, null, [], 3])("no device: %o", async (device) => {
    const { code, message } = await refusal(() =>
      ViTMSNModel.from_config(small, { device: device as never }),
    );
    expect([code, message]).toEqual(["INVALID_ARGUMENT", expect.stringContaining("a GPUDevice")]);
  });

  test("text is quoted in messages, and tokens aren't shown", async () => {
    expect((await refusal(() => classify(image, { top_k: "1" as never }))).message).toContain('got "1"');
    const secret = { token: ["hf_secret"] as never };
    expect((await refusal(() => ViTMSNModel.from_pretrained(files, secret))).message).not.toContain(
      "hf_secret",
    );
  });

  test("more threads than the engine supports are reduced, with the reason", async () => {
    const many = await ViTMSNModel.from_config(small, {
      device: "wasm",
      num_threads: 65,
      wasm: await single_threaded(),
    });
    expect(many.engine_info.reasons.join(" ")).toContain("up to 64 threads");
    await many.dispose();
  });
});

/** The engine's binary for one thread. */
async function single_threaded(): Promise<WebAssembly.Module> {
  return WebAssembly.compile((await read_file("dist/vit_msn_simd128.wasm")) as BufferSource);
}

/** Makes an array's memory go away, as postMessage does with what it transfers. */
function transfer(array: ArrayBufferView): void {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
}

/** A view whose memory shrinks or grows afterwards. */
function resizable(bytes: number): ArrayBuffer & { resize(bytes: number): void } {
  const Resizable = ArrayBuffer as unknown as new (
    length: number,
    options: object,
  ) => ArrayBuffer & { resize(bytes: number): void };
  return new Resizable(bytes, { maxByteLength: 4 * bytes });
}

describe("arrays whose memory was detached", () => {
  test.each([{}, { num_threads: 2 }, { worker: true }])(
    "are refused, and the model still works (%o)",
    async (options) => {
      const own = await ViTMSNForImageClassification.from_config(small, { device: "wasm", ...options });
      const expected = (await own({ pixel_values: pixels() })).logits.data;
      const gone = pixels();
      transfer(gone.data);
      const shrunk = resizable(768);
      const fixed = new Tensor("float32", new Float32Array(shrunk, 0, 192), [1, 3, 8, 8]);
      shrunk.resize(4);
      const grown = resizable(768);
      const tracking = new Tensor("float32", new Float32Array(grown), [1, 3, 8, 8]);
      grown.resize(1536);
      const patches = new Tensor("int32", Int32Array.of(0, 1), [1, 2]);
      const labels = new Tensor("int64", BigInt64Array.of(1n), [1]);
      transfer(patches.data);
      transfer(labels.data);
      for (const inputs of [
        { pixel_values: gone },
        { pixel_values: fixed },
        { pixel_values: tracking },
        { pixel_values: pixels(), visible_patches: patches },
        { pixel_values: pixels(), labels },
      ]) {
        expect((await refusal(() => own(inputs))).code).toBe("INVALID_ARGUMENT");
        expect((await own({ pixel_values: pixels() })).logits.data).toEqual(expected);
      }
      await own.dispose();
    },
  );

  test("shared and resizable memory works like any other", async () => {
    const expected = (await model({ pixel_values: pixels() })).logits.data;
    // A page that isn't cross-origin isolated has no shared memory to pass.
    const shared = typeof SharedArrayBuffer === "undefined" ? [] : [new SharedArrayBuffer(768)];
    for (const buffer of [...shared, resizable(768)]) {
      const pixel_values = new Tensor("float32", new Float32Array(buffer).fill(0.5), [1, 3, 8, 8]);
      expect((await model({ pixel_values })).logits.data).toEqual(expected);
    }
  });

  test("images are refused whatever is done with them", async () => {
    const gone = new RawImage(new Uint8Array(192), 8, 8, 3);
    transfer(gone.data);
    for (const use of [
      () => gone.rgb(),
      () => gone.rgba(),
      () => gone.resize(4, 4),
      () => gone.crop([0, 0, 1, 1]),
      () => gone.center_crop(4, 4),
      () => gone.clone(),
      () => RawImage.read(gone),
      () => processor(gone),
      () => processor(gone, { do_resize: false }),
      () => classify(gone),
    ])
      expect((await refusal(use)).code).toBe("INVALID_ARGUMENT");
  });

  test("files in memory and the engine's own are refused", async () => {
    const bytes = new Uint8Array(8);
    const buffer = new ArrayBuffer(8);
    transfer(bytes);
    transfer(new Uint8Array(buffer));
    for (const gone of [bytes, buffer]) {
      for (const use of [
        () => RawImage.read(gone),
        () => ViTMSNModel.from_pretrained({ ...files, "model.safetensors": gone }),
        () => ViTMSNModel.from_config(small, { device: "wasm", wasm: gone }),
      ])
        expect((await refusal(use)).code).toBe("INVALID_ARGUMENT");
    }
  });
});
