import {
  env,
  type PretrainedSource,
  ViTImageProcessor,
  type ViTMSNConfig,
  ViTMSNForImageClassification,
} from "vit-msn";
import type { Call } from "./calls.ts";
import type { LoadProgress, ModelChoice, ModelInfo, Settings } from "./types.ts";

/** A model with its processor, and its description for the page. */
export interface LoadedModel {
  model: ViTMSNForImageClassification;
  processor: ViTImageProcessor;
  info: ModelInfo;
}

/** The model that comes with the page, next to the package's JavaScript. */
const CARRIED = new URL("./vit-msn/models/fashion/", import.meta.url);

/** @throws VitMsnError what from_pretrained throws. */
export async function load_model(settings: Settings, { signal, progress }: Call): Promise<LoadedModel> {
  const started = performance.now();
  const source = source_of(settings.model);
  const warnings: string[] = [];
  // The service worker caches the model that comes with the page; others are cached as downloads.
  env.use_cache = settings.model.kind === "hub";
  env.warn = (message) => warnings.push(message);
  const { device, dtype, num_threads } = settings;
  const options = {
    device,
    dtype,
    num_threads,
    signal,
    progress_callback: ({
      status,
      file = "",
      loaded = 0,
      total = 0,
    }: { status: string } & Partial<LoadProgress>) => {
      if (status === "progress") progress({ file, loaded, total } satisfies LoadProgress);
    },
  };
  const processor = await ViTImageProcessor.from_pretrained(source, options);
  const model = await ViTMSNForImageClassification.from_pretrained(source, options);
  return { model, processor, info: describe(model, settings.model, warnings, performance.now() - started) };
}

/** What from_pretrained takes. */
export function source_of(choice: ModelChoice): PretrainedSource {
  switch (choice.kind) {
    case "carried":
      return CARRIED;
    case "hub":
      return choice.repo;
    case "files":
      return choice.files;
  }
}

function name_of(choice: ModelChoice): string {
  switch (choice.kind) {
    case "carried":
      return "Fashion, the bundled model";
    case "hub":
      return choice.repo;
    case "files":
      return choice.name;
  }
}

function describe(
  model: ViTMSNForImageClassification,
  choice: ModelChoice,
  warnings: string[],
  load_ms: number,
): ModelInfo {
  const { config } = model;
  const { height, width } = config.image_grid;
  // A backbone's classifier is random: its scores would mean nothing.
  const is_backbone = warnings.some((warning) => warning.includes("classifier.weight"));
  const labels = Array.from({ length: config.num_labels }, (_, i) => config.id2label[i] as string);
  return {
    name: name_of(choice),
    labels: is_backbone ? [] : labels,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    hidden_size: config.hidden_size,
    patch_size: config.patch_grid.height,
    image_size: [height, width],
    parameters: count_parameters(config),
    device: typeof model.device === "string" ? model.device : "webgpu",
    dtype: model.dtype,
    engine: model.engine_info,
    memory: model.memory(),
    load_ms,
    warnings,
  };
}

/** Weights and biases of the backbone and the classifier. */
function count_parameters(config: ViTMSNConfig): number {
  const { hidden_size: d, intermediate_size: inner, num_channels, num_labels, patch_grid, patches } = config;
  const qkv_bias = config.qkv_bias ? 3 * d : 0;
  const embeddings =
    d * num_channels * patch_grid.height * patch_grid.width +
    d +
    d +
    d * (1 + patches.height * patches.width);
  const layer = 4 * d * d + qkv_bias + d + 2 * d * inner + inner + d + 4 * d;
  return embeddings + config.num_hidden_layers * layer + 2 * d + num_labels * (d + 1);
}
