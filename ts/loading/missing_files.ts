import { find_place } from "#storage";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import type { ModelSource } from "./types.ts";

/** The name of a source whose files were passed by the caller. */
const MAP_OF_FILES = "The map of files";

/** The config of a LoRA or another PEFT adapter. */
const ADAPTER_FILE = "adapter_config.json";

/** The error for a source without config.json, which isn't a model; `also` names another missing file. */
export async function no_config(source: ModelSource, also?: string): Promise<VitMsnError> {
  const hint =
    (await adapter_hint(source)) ||
    (await offline_hint(source)) ||
    " Is it a ViT-MSN model, and is the path right?";
  const lacks = also ? `config.json and no ${also}` : "config.json";
  return new VitMsnError("NOT_FOUND", `${source.name} has no ${lacks}.${hint}`, {
    details: { file: "config.json", source: source.name },
  });
}

/** The error for a source without weights; `files` are the names that were tried. */
export async function no_weights(source: ModelSource, files: readonly string[]): Promise<VitMsnError> {
  const hint = (await adapter_hint(source)) || (await offline_hint(source));
  return new VitMsnError(
    "NOT_FOUND",
    `${source.name} holds no weights: none of ${files.join(", ")} exists.${hint}`,
    { details: { source: source.name, files } },
  );
}

/** The error for a source without `file`, which describes how to prepare images, or without config.json. */
export async function no_processor(source: ModelSource, file: string): Promise<VitMsnError> {
  if (!(await has_file(source, "config.json"))) return no_config(source, file);
  return new VitMsnError(
    "NOT_FOUND",
    `${source.name} has no ${file}, so it isn't known how to preprocess images; add that file, or create a ViTImageProcessor yourself.${await offline_hint(source)}`,
    { details: { source: source.name, file } },
  );
}

/** A sentence on what an adapter's folder lacks; "" for other folders. */
async function adapter_hint(source: ModelSource): Promise<string> {
  if (!(await has_file(source, ADAPTER_FILE))) return "";
  return (
    ` It contains ${ADAPTER_FILE}: a LoRA or other PEFT adapter, which isn't a complete model. Merge it into its base model in ` +
    "Python (merge_and_unload()) and save that."
  );
}

/** A sentence on what the cache of a hub repository or URL may lack, if nothing could be downloaded; else "". */
async function offline_hint({ name, options }: ModelSource): Promise<string> {
  const reason = options?.local_files_only
    ? "local_files_only is set"
    : env.allow_remote_models
      ? undefined
      : "env.allow_remote_models is false";
  if (reason === undefined || name === MAP_OF_FILES || (await find_place(name))?.folder !== undefined)
    return "";
  return (
    ` Nothing was downloaded, since ${reason}: the cache may hold a part of the model only, or a server's earlier answer that ` +
    "there is no such file. Load the model once while online."
  );
}

/** Whether the source certainly has the file. */
async function has_file(source: ModelSource, file: string): Promise<boolean> {
  const opened = await source.open(file).catch(() => undefined);
  await opened?.close();
  return opened !== undefined;
}
