/**
 * The engine that the model's code calls: one interface, with an implementation for each kind of device; the model
 * doesn't know which it uses. It isn't an array library: ops are as coarse as is worth fusing, each op fixes its
 * shapes, and nothing is broadcast.
 *
 * Ops enqueue work and return a handle at once; only methods that copy values out wait. Every handle must be freed: use
 * `Scope`.
 */

import type { FloatDtype, WeightDtype } from "../dtypes.ts";
import type { ForwardQueue } from "./forward_queue.ts";

/** The activation functions of the reference's ACT2FN that have no parameters; "identity" returns its input. */
export const ACTIVATIONS = [
  "identity",
  "gelu",
  "relu",
  "silu",
  "gelu_new",
  "quick_gelu",
  "gelu_pytorch_tanh",
  "relu6",
  "leaky_relu",
  "relu2",
  "tanh",
  "sigmoid",
  "mish",
  "gelu_10",
  "laplace",
] as const;
export type Activation = (typeof ACTIVATIONS)[number];

declare const tensor_brand: unique symbol;
declare const linear_brand: unique symbol;
/** A float32 tensor on the device. */
export type TensorHandle = number & { readonly [tensor_brand]: true };
/** The weight [out_features, in_features] and bias [out_features] of a linear layer, in the layout its kernel reads. */
export type LinearHandle = number & { readonly [linear_brand]: true };
export type Handle = TensorHandle | LinearHandle;

/** The sizes of a grid of patches, in patches. */
export interface Grid {
  height: number;
  width: number;
}

export interface Engine {
  /** Uploads float32 values. */
  tensor(data: Float32Array, dims: readonly number[]): TensorHandle;
  /** Uploads raw little-endian values of a checkpoint, rounded through `dtype` and widened to float32. */
  parameter(bytes: Uint8Array, from: FloatDtype, dtype: FloatDtype, dims: readonly number[]): TensorHandle;
  /** The values of a parameter as raw little-endian values of `dtype` (for save_pretrained). */
  parameter_bytes(parameter: TensorHandle, dtype: FloatDtype): Promise<Uint8Array>;
  /** An empty linear layer: fill every row with `set_rows`, and the bias, before its first use. */
  linear_weights(
    out_features: number,
    in_features: number,
    dtype: WeightDtype,
    has_bias: boolean,
  ): LinearHandle;
  /** Packs whole rows of the weight, starting at row `row`; `bytes` are raw little-endian values of type `from`. */
  set_rows(weights: LinearHandle, row: number, bytes: Uint8Array, from: FloatDtype): void;
  /** Packs rows that are already quantised, from signed bytes and one little-endian float32 scale per row. */
  set_quantised_rows(weights: LinearHandle, row: number, bytes: Uint8Array, scales: Uint8Array): void;
  /** Sets bias elements starting at `offset`. */
  set_bias(weights: LinearHandle, offset: number, bytes: Uint8Array, from: FloatDtype): void;
  /** `rows` rows of the weight starting at `row`, as raw values of its dtype (for save_pretrained). */
  get_rows(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array>;
  /** The scales of `rows` rows of an int8 weight starting at `row`, as little-endian float32. */
  get_scales(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array>;
  /** `count` bias elements starting at `offset`, as raw values of the weight's dtype; with int8, float32. */
  get_bias(weights: LinearHandle, offset: number, count: number): Promise<Uint8Array>;

  /**
   * activation(x · weightᵀ + bias) + residual; x [..., in_features] -> [..., out_features].
   *
   * Here and below, `reader` is the linear layer that alone will read the result, if there is one. An engine may store
   * the result in the form that this layer multiplies, since nothing else reads it. The layer's result is the same, bit
   * for bit.
   */
  linear(
    x: TensorHandle,
    weights: LinearHandle,
    activation: Activation,
    residual?: TensorHandle,
    reader?: LinearHandle,
  ): TensorHandle;
  /** Normalises over the last dimension, then scales and shifts. */
  layer_norm(
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle,
    eps: number,
    reader?: LinearHandle,
  ): TensorHandle;
  /** Fused attention that never materialises the N×N scores; qkv [B, N, 3·D] (query | key | value) -> [B, N, D]. */
  scaled_dot_product_attention(qkv: TensorHandle, num_heads: number, reader?: LinearHandle): TensorHandle;
  /** Unfused attention; also returns the probabilities [B, heads, N, N]. */
  eager_attention(qkv: TensorHandle, num_heads: number): { context: TensorHandle; probs: TensorHandle };
  /** The patch projection: pixels [B, C, H, W] -> [B, num_patches, D]; the weight is the convolution's, flattened. */
  patch_embed(pixel_values: TensorHandle, projection: LinearHandle, patch: Grid): TensorHandle;
  /**
   * [cls + positions[0]; patches + positions[1..]] -> [B, 1 + num_patches, D]. Where `mask` ([B · num_patches], 0 or 1)
   * is 1, mask_token [D] replaces the patch before positions are added.
   */
  embed_tokens(
    patches: TensorHandle,
    cls_token: TensorHandle,
    positions: TensorHandle,
    masked?: { mask: Uint8Array; mask_token: TensorHandle },
  ): TensorHandle;
  /**
   * CLS and `num_visible` chosen patches of each image, in the order of `patches` [B · num_visible]:
   * [B, N, D] -> [B, 1 + num_visible, D].
   */
  take_tokens(x: TensorHandle, patches: Uint32Array, num_visible: number): TensorHandle;
  /** Interpolates position encodings [1 + from.height·from.width, D] bicubically (a = -0.75, align_corners = false). */
  interpolate_positions(positions: TensorHandle, from: Grid, to: Grid): TensorHandle;
  /** [B, N, D] -> [B, D]: the CLS token, or the mean of the patch tokens. */
  pool(x: TensorHandle, kind: "cls" | "mean"): TensorHandle;
  /** Mean cross-entropy of logits [B, C] and class indices [B]; -100 is ignored -> [1]. */
  cross_entropy(logits: TensorHandle, labels: Int32Array): TensorHandle;
  /** Mean squared error over all elements -> [1]. */
  mse_loss(x: TensorHandle, target: TensorHandle): TensorHandle;
  /** Mean binary cross-entropy with logits over all elements -> [1]. */
  bce_with_logits(logits: TensorHandle, target: TensorHandle): TensorHandle;

  dims(x: TensorHandle): number[];
  /** Resolves when all work for this value is done; rejects with its error. */
  ready(handle: Handle): Promise<void>;
  /**
   * Resolves when the device lags only a little behind what was recorded up to this value. It doesn't report errors:
   * reading does.
   */
  caught_up(x: TensorHandle): Promise<void>;
  /** Waits for the tensor and copies it out. */
  read(x: TensorHandle): Promise<Float32Array>;
  free(handle: Handle): void;
  /** The allocations, for leak tests and reports. */
  memory(): EngineMemory;
  /**
   * Compiles all kernels of a forward pass at the same time, on devices where compiling is slow. `forward` runs on this
   * engine, on handles created inside it, and computes nothing: it reads zeros. Don't call anything else until this
   * resolves, which happens when `forward` has ended; `compiled` resolves when the kernels are compiled.
   */
  compile_ahead?(forward: () => Promise<unknown>): Promise<{ compiled: Promise<void> }>;
  /** The queue of forward passes; none where a caller runs them one by one. */
  readonly forward_queue?: ForwardQueue;
  /** Max bytes of a tensor, if there is a limit; some ops split results that exceed it. */
  readonly max_tensor_bytes?: number;
  /** Floating-point operations that take the device a tenth of a second, if longer ops would block it. */
  readonly work_limit?: number;
  /** The image processor, if images can be prepared on the device. */
  readonly images?: ImageEngine;
  /** How to time ops, if they aren't done when they return. */
  readonly timing?: Timing;
  /** How to choose tiles, if several can compute a linear layer. */
  readonly tiled?: TiledEngine;
  /** Whether the device was lost, with all its memory; a new engine may replace this one. */
  readonly is_lost?: boolean;
  /** Releases everything; later calls throw. Resolves when the device has released its memory. */
  dispose(): Promise<void>;
}

/** An 8-bit image, row by row, channels interleaved: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. */
export interface ImageBytes {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: number;
}

/** An image that a page can draw. */
export interface DrawnImage {
  source: GPUCopyExternalImageSource;
  width: number;
  height: number;
}

/**
 * How to resample one axis: for each result the first pixel, the number of pixels, and `stride` - 2 weights of 22 bits.
 */
export interface ResampledAxis {
  table: Int32Array;
  stride: number;
}

/** How an image becomes pixel values. */
export interface ImagePlan {
  columns: ResampledAxis;
  rows: ResampledAxis;
  /** Whether rows are resampled before columns. The order matters, since each pass rounds to 8 bits. */
  rows_first: boolean;
  /** Where the result begins in the resampled image. It may reach beyond the image, which counts as black there. */
  left: number;
  top: number;
  /** The pixel value of each of the 256 bytes, for each of three channels. */
  values: Float32Array;
}

/** An image processor on the device. */
export interface ImageEngine {
  /** The max side of a drawn image. */
  readonly max_side: number;
  /** The max bytes of an image; a drawn image has four per pixel. */
  readonly max_bytes: number;
  /** Room for pixel values [batch, 3, height, width]. */
  pixels(dims: readonly number[]): TensorHandle;
  /** Writes the pixel values of image `index`: alpha is dropped, grey repeated. */
  put(image: ImageBytes | DrawnImage, plan: ImagePlan, pixels: TensorHandle, index: number): void;
}

export interface EngineMemory {
  /** Live tensors and linear layers. */
  handles: number;
  /** Bytes of their data. */
  bytes: number;
  /** The total bytes that the device has reserved (for WebAssembly, the size of its memory). */
  reserved: number;
}

/** Frees its handles when it closes, except those that were released. */
export class Scope {
  readonly #engine: Engine;
  readonly #handles = new Set<Handle>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Ties the handle to this scope. */
  use<H extends Handle>(handle: H): H {
    this.#handles.add(handle);
    return handle;
  }

  /** Frees one handle before the scope ends, so that the next op can reuse its memory. */
  free(handle: Handle): void {
    if (this.#handles.delete(handle)) this.#engine.free(handle);
  }

  /** Unties one handle, which the caller then has to free. */
  release<H extends Handle>(handle: H): H {
    this.#handles.delete(handle);
    return handle;
  }

  close(): void {
    for (const handle of this.#handles) this.#engine.free(handle);
    this.#handles.clear();
  }
}

/** Times the ops of an engine whose ops aren't done when they return. */
export interface Timing {
  /** The number of kernels recorded so far. */
  dispatches(): number;
  /** The bytes of a tensor in memory. */
  bytes(x: TensorHandle): number;
  start(): void;
  /** The nanoseconds of each kernel since `start`, in order; NaN if the device has no clock. */
  stop(): Promise<Float64Array>;
}

/** The op, sizes and dtype that determine which tile is fastest. */
export interface LayerShape {
  readonly op: "linear" | "attention";
  /** Rows of x; for attention, the tokens of an image. */
  readonly rows: number;
  /** Features of x; for attention, the channels of a head. */
  readonly inputs: number;
  /** Features of the result; for attention, the heads of all images. */
  readonly outputs: number;
  readonly dtype: WeightDtype;
}

/** The tile chosen for layers or attention of a shape. */
export interface TileChoice extends LayerShape {
  /**
   * For example "64x64/4x4": a workgroup computes 64×64 results, each of its invocations 4×4 of them. For attention
   * "32x16": 32 queries by 16 keys at a time.
   */
  readonly tile: string;
  /** The tile that is used without a measurement. */
  readonly default_tile: string;
  /** The milliseconds of each tile for one layer or attention. */
  readonly ms: Readonly<Record<string, number>>;
}

/** An engine that has more than one tile for a linear layer or attention. */
export interface TiledEngine {
  layer_shape(weights: LinearHandle, rows: number): LayerShape;
  /** The tiles that can compute this, the default one first. */
  tiles(shape: LayerShape): string[];
  choose_tile(shape: LayerShape, tile: string): void;
  /** Whether a choice still applies: this device can run its tile, and all tiles were measured. */
  still_holds(choice: TileChoice): boolean;
  /** The choice made on this adapter, by this program or an earlier one. */
  chosen(shape: LayerShape): TileChoice | undefined;
  /** Caches choices for later models and other programs. */
  remember(choices: readonly TileChoice[]): Promise<void>;
  /** The milliseconds that the device takes to compute this `times` times; `weights` are a linear layer's. */
  time(shape: LayerShape, weights: LinearHandle | undefined, times: number): Promise<number>;
}
