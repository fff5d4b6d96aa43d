import { VitMsnError } from "../errors.ts";
import type { ModelSource } from "./types.ts";

/** Beside the weights of a LoRA or another of PEFT's adapters. */
const ADAPTER_FILE = "adapter_config.json";

/** The refusal of a source without config.json, which is no model; `also` is what it lacks besides. */
export async function no_config(source: ModelSource, also?: string): Promise<VitMsnError> {
  const hint = (await adapter_hint(source)) || " Is it a ViT-MSN model, and is the path right?";
  const lacks = also ? `config.json and no ${also}` : "config.json";
  return new VitMsnError("NOT_FOUND", `${source.name} has no ${lacks}.${hint}`, {
    details: { file: "config.json", source: source.name },
  });
}

/** A sentence on what an adapter's folder lacks; "" for any other. */
export async function adapter_hint(source: ModelSource): Promise<string> {
  if (!(await has_file(source, ADAPTER_FILE))) return "";
  return (
    ` It holds ${ADAPTER_FILE}: a LoRA or other PEFT adapter, which isn't a model by itself. Merge it into its base model in ` +
    "Python (merge_and_unload()) and save that."
  );
}

/** Whether the source certainly has the file. */
export async function has_file(source: ModelSource, file: string): Promise<boolean> {
  const opened = await source.open(file).catch(() => undefined);
  await opened?.close();
  return opened !== undefined;
}
