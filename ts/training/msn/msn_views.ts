import { VitMsnError } from "../../errors.ts";
import type { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import { value_tables } from "../../image/processed_size.ts";
import { RawImage } from "../../image/raw_image.ts";
import type { ViTMSNConfig } from "../../model/configuration_vit_msn.ts";
import { Tensor } from "../../tensor.ts";
import {
  type Collator,
  type DrawnExample,
  type ImageCollatorOptions,
  skip_or_throw,
} from "../data/collate.ts";
import { color_jitter, random_apply, random_grayscale } from "../data/color_transforms.ts";
import { name_of } from "../data/dataset.ts";
import { random_gaussian_blur } from "../data/gaussian_blur.ts";
import {
  compose,
  type ImageTransform,
  random_horizontal_flip,
  random_resized_crop,
} from "../data/transforms.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";

/** The views of one step's B pictures, ready for the patch projection; anchors lie view by view. */
export interface MSNViews {
  /** float32 [B, channels, height, width]: what the target branch sees, whole. */
  target: Tensor;
  /** float32 [rand_views · B, channels, height, width]: random anchors, which lose patches. Undefined where there are none. */
  random?: Tensor | undefined;
  /** float32 [focal_views · B, channels, height, width]: focal anchors, which keep all. Undefined where there are none. */
  focal?: Tensor | undefined;
  /** The patches that random anchors keep, the same for all, by index in reading order. Default: drawn by patch_drop and seed. */
  visible_patches?: readonly number[];
}

/** Makes a step's views of pictures; undefined where none can be used. */
export type ViewCollator = Collator<MSNViews>;

export interface MSNViewOptions extends Pick<ImageCollatorOptions, "unreadable_pictures"> {
  args: MSNPretrainingArguments;
  config: ViTMSNConfig;
  /** Only how it normalises matters. */
  processor: ViTImageProcessor;
}

/** The transforms of both kinds of views. */
export interface MSNTransforms {
  random: ImageTransform;
  focal: ImageTransform;
}

/**
 * What makes a view of a picture: a random part of it resized, mirrored, its colours changed, grey and blurred, each with its
 * probability, in this order. Source: make_transforms in data_manager.py of facebookresearch/msn.
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

/** Reads pictures and makes their views: the target's first, then random ones, then focal ones. */
export function msn_view_collator(options: MSNViewOptions): ViewCollator {
  const { args, config, processor } = options;
  const transforms = msn_transforms(args, config);
  const { rand_size, focal_size } = args.get_sizes(config);
  const tables = value_tables(processor, config.num_channels);
  const warned = new Set<string>();
  return async (drawn, { signal }) => {
    const pictures: { image: RawImage; one: DrawnExample }[] = [];
    for (const one of drawn) {
      try {
        pictures.push({ image: await picture_of(one, config, signal), one });
      } catch (error) {
        skip_or_throw(error, name_of(one.example, one.index), options, warned);
      }
    }
    // A batch norm of one picture has no variance.
    if (pictures.length < 2) return undefined;
    const group = (views: number, size: number) => new ViewGroup(pictures.length, views, size, tables);
    const [target, random, focal] = [
      group(1, rand_size),
      group(args.rand_views, rand_size),
      group(args.focal_views, focal_size),
    ];
    for (const [i, { image, one }] of pictures.entries()) {
      target.add(i, image, transforms.random, one);
      random.add(i, image, transforms.random, one);
      focal.add(i, image, transforms.focal, one);
    }
    return { target: target.tensor() as Tensor, random: random.tensor(), focal: focal.tensor() };
  };
}

/** A picture without alpha, grey where the model is; grey pictures stay so until they are written, since all changes of colour leave them grey. */
async function picture_of(
  { example, index }: DrawnExample,
  config: ViTMSNConfig,
  signal: AbortSignal | undefined,
): Promise<RawImage> {
  if (example.image === undefined) {
    const found = example.pixel_values === undefined ? "neither" : "pixel_values that are normalised already";
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `Example ${index} of the data has ${found}: views are cut from pictures, so give it an image, or the data as a uint8 Tensor.`,
      { details: { argument: "train_dataset", index } },
    );
  }
  const image = await RawImage.read(example.image, { signal });
  return image.convert(config.num_channels === 1 || image.channels <= 2 ? 1 : 3);
}

/** Some views of every picture, of one size, on their way into one tensor. */
class ViewGroup {
  readonly #pictures: number;
  readonly #views: number;
  readonly #size: number;
  readonly #tables: readonly Float32Array[];
  readonly #values: Float32Array;

  constructor(pictures: number, views: number, size: number, tables: readonly Float32Array[]) {
    this.#pictures = pictures;
    this.#views = views;
    this.#size = size;
    this.#tables = tables;
    this.#values = new Float32Array(pictures * views * tables.length * size * size);
  }

  add(place: number, image: RawImage, transform: ImageTransform, { random }: DrawnExample): void {
    for (let view = 0; view < this.#views; view++) {
      this.#write(view * this.#pictures + place, transform(image, random));
    }
  }

  /** Undefined where there are no views. */
  tensor(): Tensor | undefined {
    if (this.#views === 0) return undefined;
    const dims = [this.#views * this.#pictures, this.#tables.length, this.#size, this.#size];
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
