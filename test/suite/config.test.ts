import { VIT_MSN_PRESETS, ViTMSNConfig, VitMsnError } from "vit-msn";
import { describe, expect, test } from "vitest";
import { backbone_modules, parameters_of } from "../../ts/model/architecture.ts";
import { temporary_directory } from "../support/directories.ts";
import { read_file } from "../support/files.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";

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
    [{ hidden_act: "mish" }, "hidden_act", "gelu, relu"],
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
    [{ id2label: {} }, "id2label", "indices"],
    [{ id2label: { 0: 1 } }, "id2label", "class names"],
    [{ id2label: { 0: "a", 1: "b" }, num_labels: 3 }, "num_labels", "(2)"],
    [{ num_labels: 1e9 }, "num_labels", "131072"],
    [{ label2id: { a: "0" } }, "label2id", "indices"],
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
