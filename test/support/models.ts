import type { ViTMSNForImageClassification } from "vit-msn";
import { temporary_directory } from "./directories.ts";
import { read_file } from "./files.ts";

/** Of a model that trains in milliseconds. */
export const TRAINABLE_CONFIG = {
  hidden_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  intermediate_size: 32,
  image_size: 8,
  patch_size: 4,
} as const;

/** The file of weights that save_pretrained writes. */
export async function saved_weights(model: ViTMSNForImageClassification): Promise<Uint8Array> {
  const directory = await temporary_directory();
  await model.save_pretrained(directory.target);
  const { "model.safetensors": file } = await directory.read_files();
  await directory.remove();
  return file as Uint8Array;
}

/** A model's files by name, as a page that has them would pass them. */
export async function model_files(
  folder: string,
  names: readonly string[] = ["config.json", "preprocessor_config.json", "model.safetensors"],
): Promise<Record<string, Uint8Array>> {
  const entries = names.map(async (name) => [name, await read_file(`${folder}/${name}`)] as const);
  return Object.fromEntries(await Promise.all(entries));
}

/** The files of a fixture case. */
export function fixture_files(name: string): Promise<Record<string, Uint8Array>> {
  const weights = name === "pytorch_bin" ? "pytorch_model.bin" : "model.safetensors";
  return model_files(`test/fixtures/${name}`, ["config.json", "preprocessor_config.json", weights]);
}
