import { VitMsnError } from "../../errors.ts";
import type { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import { value_tables } from "../../image/processed_size.ts";
import type { RawImage } from "../../image/raw_image.ts";
import type { ViTMSNConfig } from "../../model/configuration_vit_msn.ts";
import { Tensor } from "../../tensor.ts";
import {
  type Collator,
  type DrawnExample,
  type ImageCollatorOptions,
  skip_or_throw,
} from "../data/collate.ts";
import { color_jitter, random_apply, random_grayscale } from "../data/color_transforms.ts";
import { name_of, read_image } from "../data/dataset.ts";
import { random_gaussian_blur } from "../data/gaussian_blur.ts";
import {
  compose,
  type ImageTransform,
  random_horizontal_flip,
  random_resized_crop,
} from "../data/transforms.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";

/**
 * The views of one step's B images, ready for the patch projection; anchors are ordered by view, then image.
 */
export interface MSNViews {
  /** float32 [B, channels, height, width]: the input of the target branch, with all patches. */
  target: Tensor;
  /**
   * float32 [rand_views · B, channels, height, width]: random anchors. Undefined if there are none.
   */
  random?: Tensor | undefined;
  /**
   * float32 [focal_views · B, channels, height, width]: focal anchors. Undefined if there are none.
   */
  focal?: Tensor | undefined;
  /**
   * The visible patches of the anchors that lose some (random ones, and focal ones of the same size; focal ones if there
   * are no random ones), the same for all, by index in row-major order. Default: drawn by patch_drop and seed.
   */
  visible_patches?: readonly number[];
}

/** Makes the views of a step's images; undefined if none can be used. */
export type ViewCollator = Collator<MSNViews>;

export interface MSNViewOptions extends Pick<ImageCollatorOptions, "unreadable_images"> {
  args: MSNPretrainingArguments;
  config: ViTMSNConfig;
  /** Only its normalisation is used. */
  processor: ViTImageProcessor;
}

/** The transforms of both kinds of views. */
export interface MSNTransforms {
  random: ImageTransform;
  focal: ImageTransform;
}

/**
 * The transforms that make a view of an image: random resized crop, mirroring, colour jitter, greyscale and
 * blur, each with its probability, in this order. Source: make_transforms in data_manager.py of
 * facebookresearch/msn.
 */
export function msn_transforms(args: MSNPretrainingArguments, config: ViTMSNConfig): MSNTransforms {
  const { rand_size, focal_size } = args.get_sizes(config);
  const { color_jitter_strength: strength, brightness, contrast, saturation, hue, crop_ratio: ratio } = args;
  const jitter = color_jitter({
    brightness: brightness * strength,
    contrast: contrast * strength,
    saturation: saturation * strength,
    hue: hue * strength,
  });
  const after = compose(
    random_horizontal_flip(args.flip_prob),
    random_apply(jitter, args.color_jitter_prob),
    random_grayscale(args.grayscale_prob),
    random_gaussian_blur(args.blur_prob, args.blur_radius),
  );
  const view = (size: number, scale: readonly [number, number]) =>
    compose(random_resized_crop([size, size], { scale, ratio }), after);
  return { random: view(rand_size, args.rand_crop_scale), focal: view(focal_size, args.focal_crop_scale) };
}

/** Reads images and makes their views: first the target's, then random ones, then focal ones. */
export function msn_view_collator(options: MSNViewOptions): ViewCollator {
  const { args, config, processor } = options;
  const transforms = msn_transforms(args, config);
  const { rand_size, focal_size } = args.get_sizes(config);
  const tables = value_tables(processor, config.num_channels);
  const warned = new Set<string>();
  return async (drawn, { signal }) => {
    const images: { image: RawImage; one: DrawnExample }[] = [];
    for (const one of drawn) {
      try {
        images.push({ image: await image_of(one, config, signal), one });
      } catch (error) {
        skip_or_throw(error, name_of(one.example, one.index), options, warned);
      }
    }
    // Batch norm over a single image has no variance.
    if (images.length < 2) return undefined;
    const group = (views: number, size: number) => new ViewGroup(images.length, views, size, tables);
    const [target, random, focal] = [
      group(1, rand_size),
      group(args.rand_views, rand_size),
      group(args.focal_views, focal_size),
    ];
    for (const [i, { image, one }] of images.entries()) {
      target.add(i, image, transforms.random, one);
      random.add(i, image, transforms.random, one);
      focal.add(i, image, transforms.focal, one);
    }
    return { target: target.tensor() as Tensor, random: random.tensor(), focal: focal.tensor() };
  };
}

/**
 * Reads an image without alpha, in grey for a grey model. Grey images stay grey until they are written, since
 * no colour transform changes that.
 */
async function image_of(
  { example, index }: DrawnExample,
  config: ViTMSNConfig,
  signal: AbortSignal | undefined,
): Promise<RawImage> {
  if (example.image === undefined) {
    const found = example.pixel_values === undefined ? "no image" : "normalised pixel_values";
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `Example ${index} of the data has ${found}, but views are cropped from images; pass an image, or the data as a uint8 Tensor.`,
      { details: { argument: "train_dataset", index } },
    );
  }
  const image = await read_image(example.image, { signal });
  return image.convert(config.num_channels === 1 || image.channels <= 2 ? 1 : 3);
}

/** Collects views of one size, of every image, into one tensor. */
class ViewGroup {
  readonly #images: number;
  readonly #views: number;
  readonly #size: number;
  readonly #tables: readonly Float32Array[];
  readonly #values: Float32Array;

  constructor(images: number, views: number, size: number, tables: readonly Float32Array[]) {
    this.#images = images;
    this.#views = views;
    this.#size = size;
    this.#tables = tables;
    this.#values = new Float32Array(images * views * tables.length * size * size);
  }

  add(place: number, image: RawImage, transform: ImageTransform, { random }: DrawnExample): void {
    for (let view = 0; view < this.#views; view++) {
      this.#write(view * this.#images + place, transform(image, random));
    }
  }

  /** Undefined if there are no views. */
  tensor(): Tensor | undefined {
    if (this.#views === 0) return undefined;
    const dims = [this.#views * this.#images, this.#tables.length, this.#size, this.#size];
    return new Tensor("float32", this.#values, dims);
  }

  #write(row: number, { data, channels }: RawImage): void {
    const plane = this.#size * this.#size;
    for (const [c, table] of this.#tables.entries()) {
      const start = (row * this.#tables.length + c) * plane;
      for (let i = 0, at = channels === 1 ? 0 : c; i < plane; i++, at += channels) {
        this.#values[start + i] = table[data[at] as number] as number;
      }
    }
  }
}
