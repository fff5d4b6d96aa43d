import type { ClassificationResult, DtypeName, EngineInfo, EngineMemory } from "vit-msn";

/** An image as the page names it; its bytes are a Blob, which costs nothing to send. */
export interface ImageRef {
  id: number;
  blob: Blob;
}

/** Where a model comes from. */
export type ModelChoice =
  | { kind: "carried" }
  | { kind: "hub"; repo: string }
  | { kind: "files"; name: string; files: Map<string, Blob> };

/** What the user can choose about how a model runs. */
export interface Settings {
  model: ModelChoice;
  device: "auto" | "wasm" | "webgpu";
  dtype: Extract<DtypeName, "float32" | "float16" | "bfloat16" | "int8">;
  num_threads: number;
}

export interface LoadProgress {
  file: string;
  loaded: number;
  total: number;
}

/** What the page shows of a loaded model. */
export interface ModelInfo {
  name: string;
  /** The model's classes; empty for a backbone, whose head would be random. */
  labels: string[];
  layers: number;
  heads: number;
  hidden_size: number;
  patch_size: number;
  /** [height, width] in pixels. */
  image_size: [number, number];
  parameters: number;
  device: string;
  dtype: string;
  engine: EngineInfo;
  memory: EngineMemory;
  load_ms: number;
  warnings: string[];
}

/** How the model's patches lie on an image. */
export interface PatchLayout {
  rows: number;
  columns: number;
  /** The part of the image that the model sees, as shares of its width and height. */
  region: { x: number; y: number; width: number; height: number };
}

export interface Classified {
  /** All labels, best first. */
  scores: ClassificationResult[];
  layout: PatchLayout;
  /** Of the forward pass, without decoding. */
  ms: number;
  /** Decoding, resizing and normalising; 0 where it was done before. */
  prepare_ms: number;
}

export interface AttentionMaps {
  layers: number;
  heads: number;
  layout: PatchLayout;
  /** [layers, heads, patches]: how much CLS looks at each patch. */
  cls: Float32Array;
  /** [layers, patches]: CLS' rollout through the layers up to and with this one. */
  rollout: Float32Array;
  ms: number;
}

export interface PcaImage {
  id: number;
  layout: PatchLayout;
  /** [patches, 3], 0 to 1: the first three components as red, green and blue. */
  colours: Float32Array;
}

export interface PcaResult {
  images: PcaImage[];
  /** Shares of the variance that the three components explain. */
  explained: [number, number, number];
  ms: number;
}

export interface Neighbour {
  id: number;
  /** Cosine of the two embeddings. */
  similarity: number;
}

export interface Done {
  done: number;
  total: number;
}

export interface ProfileRow {
  name: string;
  calls: number;
  ms: number | undefined;
  flop: number;
  bytes: number;
}

export interface ProfileResult {
  device: string;
  wall_ms: number;
  rows: ProfileRow[];
  table: string;
  chrome_trace: string;
}

export interface TaughtState {
  classes: { label: string; count: number }[];
  is_fitted: boolean;
  needs_fit: boolean;
}

/** How a pre-training run goes; the rest is MSN's defaults. */
export interface PretrainingSettings {
  /** A fresh encoder of a size, or a model to resume from. */
  start: "tiny" | "small" | "medium" | ModelChoice;
  device: Settings["device"];
  num_threads: number;
  epochs: number;
  batch_size: number;
  learning_rate: number;
  /** Prototypes. */
  num_proto: number;
  hidden_dim: number;
  output_dim: number;
  focal_views: number;
  patch_drop: number;
  /** Steps between checkpoints. */
  save_steps: number;
}

export interface PretrainingStep {
  step: number;
  max_steps: number;
  epoch: number;
  loss: number;
  prototypes_used: number;
  /** Of the mean prediction, in nats. */
  mean_entropy: number;
  learning_rate: number;
  eta_seconds: number;
  images_per_second: number;
}

export type PretrainingProgress = ({ kind: "step" } & PretrainingStep) | { kind: "warning"; message: string };

export interface PretrainingResult {
  step: number;
  max_steps: number;
}
