import {
  VIT_MSN_PRESETS,
  ViTMSNConfig,
  ViTMSNForImageClassification,
  ViTMSNModel,
  VitMsnError,
} from "vit-msn";
import { describe, expect, test } from "vitest";
import { backbone_modules, parameters_of } from "../../ts/model/architecture.ts";
import { temporary_directory } from "../support/directories.ts";
import { read_file } from "../support/files.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { with_warnings } from "../support/warnings.ts";

describe("ViTMSNConfig", () => {
  test("has the reference's defaults", () => {
    expect(new ViTMSNConfig().to_dict()).toMatchObject({
      model_type: "vit_msn",
      hidden_size: 768,
      num_hidden_layers: 12,
      num_attention_heads: 12,
      intermediate_size: 3072,
      hidden_act: "gelu",
      hidden_dropout_prob: 0,
      attention_probs_dropout_prob: 0,
      initializer_range: 0.02,
      layer_norm_eps: 1e-6,
      image_size: 224,
      patch_size: 16,
      num_channels: 3,
      qkv_bias: true,
      problem_type: null,
      id2label: { 0: "LABEL_0", 1: "LABEL_1" },
      label2id: { LABEL_0: 0, LABEL_1: 1 },
    });
    expect(new ViTMSNConfig().num_labels).toBe(2);
  });

  test("keeps fields that it doesn't know, and writes what it read", async () => {
    const text = new TextDecoder().decode(await read_file("models/fashion/config.json"));
    const fields = JSON.parse(text);
    const config = new ViTMSNConfig(fields);
    expect(JSON.parse(JSON.stringify(config))).toEqual(fields);
    expect(config.extra).toHaveProperty("chunk_size_feed_forward", 0);
    expect(config.num_labels).toBe(10);
  });

  test("from_pretrained reads it, save_pretrained writes it", async () => {
    const directory = await temporary_directory();
    const config = await ViTMSNConfig.from_pretrained(await fixture_files("tiny_rect"));
    expect(config.image_size).toEqual([32, 48]);
    await config.save_pretrained(directory.target);
    const again = await ViTMSNConfig.from_pretrained(await directory.read_files());
    expect(again.to_dict()).toEqual(config.to_dict());
    expect((await error_of(ViTMSNConfig.from_pretrained({}))).code).toBe("NOT_FOUND");
    await directory.remove();
  });

  test("takes sizes as a number or as [height, width]", () => {
    const config = new ViTMSNConfig({ image_size: [32, 48], patch_size: 8 });
    expect(config.image_grid).toEqual({ height: 32, width: 48 });
    expect(config.patches).toEqual({ height: 4, width: 6 });
    expect(new ViTMSNConfig({ image_size: 30, patch_size: [4, 7] }).patches).toEqual({ height: 7, width: 4 });
  });

  test("derives labels from num_labels", () => {
    expect(new ViTMSNConfig({ num_labels: 3 }).id2label).toEqual({
      0: "LABEL_0",
      1: "LABEL_1",
      2: "LABEL_2",
    });
    expect(new ViTMSNConfig({ id2label: { 0: "cat", 1: "dog" } }).label2id).toEqual({ cat: 0, dog: 1 });
  });

  test.each([
    [{ hidden_size: 100, num_attention_heads: 12 }, "num_attention_heads", "a divisor of hidden_size (100)"],
    [{ patch_size: 225 }, "patch_size", "at most image_size (224×224)"],
    [{ image_size: [16, 224], patch_size: [17, 16] }, "patch_size", "16×224"],
    [{ hidden_act: "prelu" }, "hidden_act", "gelu, relu"],
    [{ hidden_act: "identity" }, "hidden_act", "gelu, relu"],
    [{ hidden_act: "constructor" }, "hidden_act", "gelu, relu"],
    [{ hidden_size: 0 }, "hidden_size", "whole number"],
    [{ hidden_size: 1.5 }, "hidden_size", "whole number"],
    [{ hidden_size: "768" }, "hidden_size", '"768"'],
    [{ hidden_size: 1e9 }, "hidden_size", "65536"],
    [{ num_hidden_layers: 1e6 }, "num_hidden_layers", "1024"],
    [{ layer_norm_eps: Number.NaN }, "layer_norm_eps", "number"],
    [{ layer_norm_eps: -1 }, "layer_norm_eps", "number"],
    [{ qkv_bias: "yes" }, "qkv_bias", "true or false"],
    [{ image_size: [224] }, "image_size", "[height, width]"],
    [{ image_size: [224, -1] }, "image_size", "[height, width]"],
    [{ id2label: { 0: "a", 2: "b" } }, "id2label", "indices"],
    [{ id2label: { "-1": "a", 0: "b" } }, "id2label", "indices"],
    [{ id2label: { "0.0": "a" } }, "id2label", "indices"],
    [{ id2label: { a: "b" } }, "id2label", "indices"],
    [{ id2label: { 0: 1 } }, "id2label", "class names"],
    [{ id2label: "cat" }, "id2label", "class names"],
    [{ id2label: { 0: "a", 1: "b" }, num_labels: 3 }, "num_labels", "(2)"],
    [{ num_labels: 1e9 }, "num_labels", "131072"],
    [{ num_labels: -1 }, "num_labels", "0 to"],
    [{ layer_norm_eps: Number.POSITIVE_INFINITY }, "layer_norm_eps", "found Infinity"],
    [{ num_labels: 1, problem_type: "single_label_classification" }, "problem_type", "num_labels is 1"],
    [{ problem_type: "clustering" }, "problem_type", "regression"],
    [{ model_type: "vit" }, "model_type", "ViT-MSN"],
  ])("rejects %o by name", (fields, name, expected) => {
    let error: unknown;
    try {
      new ViTMSNConfig(fields as never, "somewhere/config.json");
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(VitMsnError);
    const { code, message } = error as VitMsnError;
    expect(code).toBe("INVALID_CONFIG");
    expect(message).toContain("somewhere/config.json");
    expect(message).toContain(`"${name}"`);
    expect(message).toContain(expected);
  });

  test.each([[null], [[]], ["{}"]])("rejects %o, which is no object", (fields) => {
    expect(() => new ViTMSNConfig(fields as never)).toThrow(VitMsnError);
  });
});

/** A config.json of this text after the model type. */
const config_of = (fields: string) =>
  ViTMSNConfig.from_pretrained({
    "config.json": new TextEncoder().encode(`{"model_type": "vit_msn", ${fields}}`),
  });

describe("labels are read as Python reads them", () => {
  // From transformers: str() of the label that the pipeline gives.
  test.each([
    ['{"0": 9, "1": -0, "2": 12345678901234567890123}', ["9", "0", "12345678901234567890123"]],
    ['{"0": 9.0, "1": 1e22, "2": 1.5, "3": 1e-05, "4": -0.0}', ["9.0", "1e+22", "1.5", "1e-05", "-0.0"]],
    [
      '{"0": 123456789012345680.0, "1": 0.0001, "2": 1e15}',
      ["1.2345678901234568e+17", "0.0001", "1000000000000000.0"],
    ],
    ['{"0": null, "1": true, "2": false}', ["None", "True", "False"]],
    ['{"0": NaN, "1": -Infinity, "2": {"__float__": "NaN"}}', ["nan", "-inf", "nan"]],
    ['{"0": ["a", "it\'s", 1], "1": {"a": null}}', ["['a', \"it's\", 1]", "{'a': None}"]],
    ['{"00": "a", "01": "b"}', ["a", "b"]],
    ['{" 1 ": "b", "+0": "a", "0_2": "c"}', ["a", "b", "c"]],
    ['{"\\u0660": "a", "１": "b"}', ["a", "b"]],
    ['{"00": "a", "0": "b", "-0": "c"}', ["c"]],
    ['{"2": "c", "0": "a", "1": "b"}', ["a", "b", "c"]],
    ['["a", 1.0]', ["a", "1.0"]],
    ['{"0": "a", "1": "a"}', ["a", "a"]],
  ])("id2label %s", async (id2label, labels) => {
    const config = await config_of(`"id2label": ${id2label}`);
    expect(Object.values(config.id2label)).toEqual(labels);
    expect(config.num_labels).toBe(labels.length);
    const again = await ViTMSNConfig.from_pretrained({
      "config.json": new TextEncoder().encode(config.to_json_string()),
    });
    expect(again.to_dict()).toEqual(config.to_dict());
  });

  // As transformers: the number of classes is that of the entries, and a class without an entry has a default name.
  test.each([
    ['{"0": "a", "2": "b"}', ["a", "LABEL_1"], "b (2)"],
    ['{"1": "a", "2": "b", "3": "c"}', ["LABEL_0", "a", "b"], "c (3)"],
    ['{"-1": "a", "0": "b"}', ["b", "LABEL_1"], "a (-1)"],
    ['{"5": 1.0}', ["LABEL_0"], "1.0 (5)"],
  ])("id2label %s has gaps, which are filled, with a warning", async (id2label, labels, unused) => {
    const { result: config, warnings } = await with_warnings(() =>
      config_of(`"id2label": ${id2label}, "label2id": {"b": 2, "a": 0}`),
    );
    expect(config.id2label).toEqual({ ...labels });
    expect(config.num_labels).toBe(labels.length);
    expect(warnings[0]).toContain(`"id2label" doesn't number its ${labels.length} classes from 0`);
    expect(warnings[0]).toContain(`unused: ${unused}`);
  });

  test.each(['{"a": "b"}', '{"0": "a", "x": "b"}', '{"0.0": "a"}'])(
    "id2label %s is refused",
    async (id2label) => {
      const error = await config_of(`"id2label": ${id2label}`).catch((error: unknown) => error);
      expect(error).toMatchObject({
        code: "INVALID_CONFIG",
        message: expect.stringContaining("indices 0, 1"),
      });
    },
  );

  test.each([
    ['{"a": "0", "b": "1"}', { a: 0, b: 1 }],
    ['{"a": 0.0, "b": " 01 "}', { a: 0, b: 1 }],
    ["null", { a: 0, b: 1 }],
    ["{}", { a: 0, b: 1 }],
    ["[]", { a: 0, b: 1 }],
    ['{"b": 1, "also b": "1"}', { a: 0, b: 1, "also b": 1 }],
  ])("label2id %s", async (label2id, expected) => {
    const { warnings, result } = await with_warnings(() =>
      config_of(`"id2label": {"0": "a", "1": "b"}, "label2id": ${label2id}`),
    );
    expect(result.label2id).toEqual(expected);
    expect(warnings).toEqual([]);
  });

  test.each([
    ['{"a": 1, "b": 0}', "for a, b"],
    ['{"a": null, "b": "one", "c": 7}', "for a, b, c"],
    ['"x"', "for 0"],
  ])("label2id %s contradicts id2label, which is used, with a warning", async (label2id, told) => {
    const { warnings, result } = await with_warnings(() =>
      config_of(`"id2label": {"0": "a", "1": "b"}, "label2id": ${label2id}`),
    );
    expect(result.label2id).toEqual({ a: 0, b: 1 });
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(told);
  });
});

describe("what else the reference accepts", () => {
  test("a backbone may have no classes; a classifier of it is refused before its weights are looked for", async () => {
    for (const fields of [
      '"num_labels": 0',
      '"id2label": {}, "label2id": {}',
      '"id2label": {}, "num_labels": 0',
    ]) {
      const config = await config_of(fields);
      expect(config.num_labels).toBe(0);
      expect(JSON.parse(config.to_json_string())).toMatchObject({ id2label: {}, label2id: {} });
      const files = { "config.json": new TextEncoder().encode(config.to_json_string()) };
      const error = await error_of(ViTMSNForImageClassification.from_pretrained(files));
      expect(error.code).toBe("INVALID_CONFIG");
      expect(error.message).toContain("no classes");
    }
  });

  test("a model without classes runs as a backbone, and a new classifier can be asked for", async () => {
    const fields = { hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8 };
    const config = { ...fields, image_size: 8, patch_size: 4, num_labels: 0 };
    const model = await ViTMSNModel.from_config(config);
    const directory = await temporary_directory();
    await model.save_pretrained(directory.target);
    await model.dispose();
    const files = await directory.read_files();
    const backbone = await ViTMSNModel.from_pretrained(files);
    expect(backbone.config.num_labels).toBe(0);
    await backbone.dispose();
    const { result } = await with_warnings(() =>
      ViTMSNForImageClassification.from_pretrained(files, {
        config: { id2label: { 0: "a", 1: "b", 2: "c" } },
      }),
    );
    expect(result.config.num_labels).toBe(3);
    await result.dispose();
    await directory.remove();
  });

  test.each(['""', "false", "null", "0"])("problem_type %s is unset", async (value) => {
    expect((await config_of(`"problem_type": ${value}`)).problem_type).toBeNull();
  });

  test("0 and 1 for false and true", async () => {
    const config = await config_of('"qkv_bias": 0, "output_attentions": 1');
    expect(config.qkv_bias).toBe(false);
    expect(config.output_attentions).toBe(true);
  });

  test("numbers that aren't finite, where nothing uses them; they are written as transformers does", async () => {
    const config = await config_of('"seen": NaN, "limits": [-Infinity, {"deep": Infinity}]');
    expect(JSON.parse(config.to_json_string())).toMatchObject({
      seen: { __float__: "NaN" },
      limits: [{ __float__: "-Infinity" }, { deep: { __float__: "Infinity" } }],
    });
    for (const field of ["layer_norm_eps", "initializer_range", "hidden_size", "image_size"]) {
      for (const value of ["NaN", "Infinity", "-Infinity"]) {
        const error = await error_of(config_of(`"${field}": ${value}`));
        expect(error.code).toBe("INVALID_CONFIG");
        expect(error.message).toContain(`"${field}"`);
        expect(error.message).toContain(`found ${value}`);
      }
    }
  });

  test("names of the same activation compute the same, and are written back", async () => {
    for (const [name, computed] of [
      ["gelu_python", "gelu"],
      ["swish", "silu"],
      ["gelu_fast", "gelu_new"],
      ["gelu_accurate", "gelu_new"],
      ["gelu_python_tanh", "gelu_new"],
      ["linear", "identity"],
      ["mish", "mish"],
      ["relu6", "relu6"],
      ["leaky_relu", "leaky_relu"],
      ["tanh", "tanh"],
    ]) {
      const config = await config_of(`"hidden_act": "${name}"`);
      expect(config.activation).toBe(computed);
      expect(config.to_dict()).toMatchObject({ hidden_act: name });
    }
  });
});

describe("presets", () => {
  // What the released checkpoints hold.
  test.each([
    ["vit-msn-small", 21_665_664, 197],
    ["vit-msn-base", 85_798_656, 197],
    ["vit-msn-large", 303_301_632, 197],
    ["vit-msn-base-4", 87_503_616, 3137],
    ["vit-msn-large-7", 303_513_600, 1025],
  ] as const)("%s has the released model's parameters and tokens", (name, parameters, tokens) => {
    const config = ViTMSNConfig.preset(name);
    const counts = backbone_modules(config, false)
      .flatMap(parameters_of)
      .map(({ dims }) => dims.reduce((a, b) => a * b, 1));
    expect(counts.reduce((a, b) => a + b, 0)).toBe(parameters);
    expect(1 + config.patches.height * config.patches.width).toBe(tokens);
    expect(config.hidden_dropout_prob).toBe(name.includes("large") ? 0.1 : 0);
    expect(ViTMSNConfig.preset(`facebook/${name}`)).toEqual(config);
  });

  test("are all listed, and fields may differ", () => {
    expect(VIT_MSN_PRESETS).toHaveLength(5);
    const config = ViTMSNConfig.preset("vit-msn-small", { num_labels: 10, image_size: 96 });
    expect(config.num_labels).toBe(10);
    expect(config.patches).toEqual({ height: 6, width: 6 });
    expect(config.hidden_size).toBe(384);
  });

  test.each(["vit-msn-huge", "", "facebook/", "toString", "facebook/facebook/vit-msn-base"])(
    "%o is none, and the error lists those that are",
    (name) => {
      let error: unknown;
      try {
        ViTMSNConfig.preset(name as "vit-msn-base");
      } catch (caught) {
        error = caught;
      }
      expect(error).toBeInstanceOf(VitMsnError);
      expect((error as VitMsnError).code).toBe("INVALID_ARGUMENT");
      expect((error as VitMsnError).message).toContain("vit-msn-large-7");
    },
  );

  test("an impossible field is named", () => {
    expect(() => ViTMSNConfig.preset("vit-msn-base", { num_attention_heads: 7 })).toThrow(
      /preset\("vit-msn-base"\).*num_attention_heads/,
    );
  });
});
