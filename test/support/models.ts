import { read_file } from "./files.ts";

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
