import { Tensor, ViTImageProcessor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { expect, test } from "vitest";
import { temporary_directory } from "../support/directories.ts";
import { fixture_files } from "../support/models.ts";

const PIXELS = new Tensor(
  "float32",
  Float32Array.from({ length: 3072 }, (_, i) => Math.sin(i)),
  [1, 3, 32, 32],
);

test.each(["float32", "float16", "bfloat16", "int8"] as const)(
  "a %s model comes back exactly",
  async (dtype) => {
    const directory = await temporary_directory();
    const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), { dtype });
    await model.save_pretrained(directory.target);
    const files = await directory.read_files();
    expect(Object.keys(files).sort()).toEqual(["config.json", "model.safetensors"]);
    const again = await ViTMSNForImageClassification.from_pretrained(files, { dtype });
    const [a, b] = [
      await model.forward({ pixel_values: PIXELS }),
      await again.forward({ pixel_values: PIXELS }),
    ];
    expect(b.logits.data).toEqual(a.logits.data);
    expect(again.config.to_dict()).toMatchObject({
      ...model.config.to_dict(),
      architectures: ["ViTMSNForImageClassification"],
      // int8 is said in quantization_config; what isn't quantised is float32.
      dtype: dtype === "int8" ? "float32" : dtype,
    });
    await Promise.all([model.dispose(), again.dispose(), directory.remove()]);
  },
);

test("keys are the hub's, whatever layout was loaded, and include the mask token", async () => {
  const directory = await temporary_directory();
  for (const [name, first, last] of [
    ["keys_v5_names", "vit.embeddings.cls_token", "classifier.bias"],
    ["pytorch_bin", "vit.embeddings.cls_token", "classifier.bias"],
  ] as const) {
    const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files(name));
    await model.save_pretrained(directory.target);
    await model.dispose();
    const keys = header_keys((await directory.read_files())["model.safetensors"] as Uint8Array);
    const reference = header_keys((await fixture_files("tiny"))["model.safetensors"] as Uint8Array);
    expect(keys).toEqual(expect.arrayContaining([first, last]));
    expect(keys.sort()).toEqual(reference.sort());
  }
  const masked = await ViTMSNModel.from_pretrained(await fixture_files("masked"));
  await masked.save_pretrained(directory.target);
  const again = await ViTMSNModel.from_pretrained(await directory.read_files());
  const bool_masked_pos = [Array.from({ length: 16 }, (_, i) => i % 2)];
  const inputs = { pixel_values: PIXELS, bool_masked_pos };
  expect((await again.forward(inputs)).last_hidden_state).toEqual(
    (await masked.forward(inputs)).last_hidden_state,
  );
  await Promise.all([masked.dispose(), again.dispose(), directory.remove()]);
});

test("a model saved over a sharded one replaces it, and nothing else", async () => {
  const directory = await temporary_directory();
  const model = await ViTMSNModel.from_pretrained(await fixture_files("backbone"));
  const old = new TextEncoder().encode("old");
  const others = ["model-card.txt", "my-model-00001-of-00002.safetensors"];
  for (const name of [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    ...others,
  ])
    await directory.write(name, old);
  await model.save_pretrained(directory.target);
  expect((await directory.list()).sort()).toEqual(["config.json", "model.safetensors", ...others].sort());
  await directory.remove();
});

test("a save that fails leaves all files of the model before it", async () => {
  const directory = await temporary_directory();
  const model = await ViTMSNModel.from_pretrained(await fixture_files("backbone"));
  const old = new TextEncoder().encode("old");
  const names = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"];
  for (const name of names) await directory.write(name, old);
  const controller = new AbortController();
  const saving = model.save_pretrained(directory.target, {
    signal: controller.signal,
    progress_callback: ({ file, status }) => {
      if (file === "config.json" && status === "initiate") controller.abort();
    },
  });
  await expect(saving).rejects.toMatchObject({ code: "ABORTED" });
  expect(Object.values(await directory.read_files())).toEqual(names.map(() => old));
  await directory.remove();
});

test.each(["a\0b", "\0"])("the folder %j is refused with a typed error", async (folder) => {
  const model = await ViTMSNModel.from_pretrained(await fixture_files("backbone"));
  await expect(model.save_pretrained(folder)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await model.dispose();
});

test("a processor comes back, beside its model", async () => {
  const directory = await temporary_directory();
  const processor = await ViTImageProcessor.from_pretrained(await fixture_files("tiny"));
  await processor.save_pretrained(directory.target);
  const again = await ViTImageProcessor.from_pretrained(await directory.read_files());
  expect(again.to_dict()).toEqual(processor.to_dict());
  await directory.remove();
});

test("saving can be aborted, and a disposed model can't be saved", async () => {
  const directory = await temporary_directory();
  const model = await ViTMSNModel.from_pretrained(await fixture_files("backbone"));
  const saving = model.save_pretrained(directory.target, { signal: AbortSignal.abort() });
  await expect(saving).rejects.toMatchObject({ code: "ABORTED" });
  expect(await directory.read_files()).toEqual({});
  const controller = new AbortController();
  const options = { signal: controller.signal, progress_callback: () => controller.abort() };
  await expect(model.save_pretrained(directory.target, options)).rejects.toMatchObject({ code: "ABORTED" });
  expect(Object.keys(await directory.read_files())).not.toContain("model.safetensors");
  await model.dispose();
  await expect(model.save_pretrained(directory.target)).rejects.toMatchObject({ code: "DISPOSED" });
  await directory.remove();
});

function header_keys(file: Uint8Array): string[] {
  const length = new DataView(file.buffer, file.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  return Object.keys(header).filter((key) => key !== "__metadata__");
}
