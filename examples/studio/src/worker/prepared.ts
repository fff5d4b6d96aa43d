import {
  type ForwardInputs,
  RawImage,
  type Tensor,
  type ViTImageProcessor,
  type ViTMSNConfig,
} from "vit-msn";
import type { Call } from "./calls.ts";
import type { ImageRef, PatchLayout } from "./types.ts";

/** Bytes of pixel values that are cached for images seen before. */
const KEPT_BYTES = 64 << 20;

/** An image as the model takes it. */
export interface PreparedImage {
  inputs: ForwardInputs & { pixel_values: Tensor<"float32"> };
  layout: PatchLayout;
}

/** Decodes and preprocesses images for one model, and remembers the last ones. */
export class Preparer {
  readonly #processor: ViTImageProcessor;
  readonly #config: ViTMSNConfig;
  readonly #cache = new Map<number, PreparedImage>();
  #bytes = 0;

  constructor(processor: ViTImageProcessor, config: ViTMSNConfig) {
    this.#processor = processor;
    this.#config = config;
  }

  async prepare({ id, blob }: ImageRef, { signal }: Pick<Call, "signal">): Promise<PreparedImage> {
    const known = this.#cache.get(id);
    if (known !== undefined) return known;
    const image = await RawImage.read(blob, { signal });
    const { pixel_values } = await this.#processor(image, { signal });
    const [, , height, width] = pixel_values.dims as [number, number, number, number];
    const { image_grid, patch_grid } = this.#config;
    const prepared = {
      inputs: {
        pixel_values,
        interpolate_pos_encoding: height !== image_grid.height || width !== image_grid.width,
      },
      layout: {
        rows: Math.floor(height / patch_grid.height),
        columns: Math.floor(width / patch_grid.width),
        region: this.#region(image.width, image.height),
      },
    };
    this.#keep(id, prepared);
    return prepared;
  }

  #keep(id: number, prepared: PreparedImage): void {
    const bytes = (p: PreparedImage) => p.inputs.pixel_values.data.byteLength;
    this.#cache.set(id, prepared);
    this.#bytes += bytes(prepared);
    for (const [oldest, image] of this.#cache) {
      if (this.#bytes <= KEPT_BYTES || oldest === id) break;
      this.#cache.delete(oldest);
      this.#bytes -= bytes(image);
    }
  }

  /** What a centre crop leaves of an image. */
  #region(width: number, height: number): PatchLayout["region"] {
    const { do_center_crop, crop_size } = this.#processor;
    if (!do_center_crop) return { x: 0, y: 0, width: 1, height: 1 };
    const resized = this.#resized(width, height);
    const [w, h] = [crop_size.width / resized.width, crop_size.height / resized.height];
    return { x: (1 - w) / 2, y: (1 - h) / 2, width: w, height: h };
  }

  #resized(width: number, height: number): { width: number; height: number } {
    const { do_resize, size } = this.#processor;
    if (!do_resize) return { width, height };
    if ("height" in size) return size;
    const scale =
      "max_height" in size
        ? Math.min(size.max_height / height, size.max_width / width)
        : size.shortest_edge / Math.min(width, height);
    return { width: width * scale, height: height * scale };
  }
}
