import { VitMsnError } from "../errors.ts";
import { truthy } from "./image_processor_config.ts";

/** The fields of a preprocessor_config.json. */
type Fields = Readonly<Record<string, unknown>>;

const CLIP_STATISTICS = {
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
};
const IMAGENET_STATISTICS = { image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225] };
const BICUBIC = 3;
const BILINEAR = 2;
const CLIP: Fields = {
  ...CLIP_STATISTICS,
  resample: BICUBIC,
  size: { shortest_edge: 224 },
  do_center_crop: true,
  crop_size: { height: 224, width: 224 },
};
const MOBILE_NET: Fields = {
  ...CLIP,
  image_mean: [0.5, 0.5, 0.5],
  image_std: [0.5, 0.5, 0.5],
  resample: BILINEAR,
  size: { shortest_edge: 256 },
};
const square = (side: number) => ({ height: side, width: side });

/** What the processors of transformers' other families do where their file doesn't say, as far as ViT's does the same. */
const DEFAULTS: Readonly<Record<string, Fields>> = {
  Beit: { resample: BICUBIC },
  Bit: CLIP,
  Blip: { ...CLIP_STATISTICS, resample: BICUBIC, size: square(384) },
  CLIP,
  ChineseCLIP: CLIP,
  ConvNext: { resample: BICUBIC, size: { shortest_edge: 384 }, crop_pct: 224 / 256 },
  DeiT: { resample: BICUBIC, size: square(256), do_center_crop: true, crop_size: square(224) },
  EfficientNet: { resample: BICUBIC, size: square(346), crop_size: square(289), include_top: true },
  Levit: { ...CLIP, ...IMAGENET_STATISTICS },
  MobileNetV1: MOBILE_NET,
  MobileNetV2: MOBILE_NET,
  PoolFormer: { ...CLIP, ...IMAGENET_STATISTICS, crop_pct: 0.9 },
  Pvt: { ...IMAGENET_STATISTICS, resample: BICUBIC },
  Segformer: { ...IMAGENET_STATISTICS, size: square(512) },
  Siglip: { resample: BICUBIC },
};
/** An integer as size is the shorter side there. */
const BY_SHORTEST_EDGE = /^(?:Bit|CLIP|ChineseCLIP|ConvNext|Levit|MobileNetV[12]|PoolFormer|Siglip)$/;
/** What transformers takes for ViT's, since it knows no such processor. */
const AS_VIT = /^(?:Auto|ViTMSN|ViT)$/;
/** Fields of a family that its own processor would apply once more. */
const APPLIED = ["crop_pct", "include_top", "rescale_offset", "feature_extractor_type"];

/**
 * The settings by which ViT's processor does what the processor of `image_processor_type` does.
 *
 * @throws VitMsnError INVALID_CONFIG that names the type where it does something that ViT's can't.
 */
export function as_vit_settings(fields: Fields, where: string): Record<string, unknown> {
  const type = fields.image_processor_type ?? fields.feature_extractor_type ?? "ViTImageProcessor";
  const fail = (key: string, why: string): never => {
    throw new VitMsnError("INVALID_CONFIG", `${where}: ${key} ${why}.`, {
      details: { file: where, key, value: fields[key] },
    });
  };
  if (fields.do_pad && fields.pad_size != null) {
    fail("do_pad", "with pad_size isn't supported; remove both if images need no padding");
  }
  const family = String(type).replace(/(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?$/, "");
  if (AS_VIT.test(family)) return { ...fields };
  const defaults = Object.hasOwn(DEFAULTS, family) ? DEFAULTS[family] : undefined;
  if (defaults === undefined) {
    return fail(
      "image_processor_type",
      `is ${JSON.stringify(type)}, which does more than resize, crop and normalise. ` +
        `Supported besides ViT: ${Object.keys(DEFAULTS).join(", ")}`,
    );
  }
  const given = Object.entries(fields).filter(([key, value]) => value !== null || key.startsWith("do_"));
  const merged: Record<string, unknown> = { ...defaults, ...Object.fromEntries(given) };
  if (typeof merged.size === "number" && BY_SHORTEST_EDGE.test(family)) {
    merged.size = { shortest_edge: merged.size };
  }
  return family in REWRITES ? rewritten(REWRITES[family] as Rewrite, merged, fail) : merged;
}

type Fail = (key: string, why: string) => never;
type Rewrite = (fields: Record<string, unknown>, fail: Fail) => Fields;

/** Families whose fields mean something else: what they come to in ViT's. */
const REWRITES: Readonly<Record<string, Rewrite>> = {
  ConvNext(fields, fail) {
    if (!truthy(fields.do_resize)) return {};
    const { shortest_edge } = sides(fields.size);
    if (shortest_edge === undefined)
      return fail("size", "must have a shortest_edge for ConvNextImageProcessor");
    if (shortest_edge >= 384) return { size: square(shortest_edge) };
    if (truthy(fields.do_center_crop))
      return fail("do_center_crop", "on top of ConvNextImageProcessor's own crop isn't supported");
    const size = { shortest_edge: Math.trunc(shortest_edge / crop_pct(fields, fail)) };
    return { size, do_center_crop: true, crop_size: square(shortest_edge) };
  },
  PoolFormer(fields, fail) {
    if (!truthy(fields.do_resize)) return {};
    const share = crop_pct(fields, fail);
    const { shortest_edge, height, width } = sides(fields.size);
    const short = shortest_edge ?? (height === width ? height : undefined);
    if (short !== undefined) return { size: { shortest_edge: Math.trunc(short / share) } };
    if (height === undefined || width === undefined) return {};
    return { size: { height: Math.trunc(height / share), width: Math.trunc(width / share) } };
  },
  Levit(fields) {
    const { shortest_edge } = sides(fields.size);
    return shortest_edge === undefined
      ? {}
      : { size: { shortest_edge: Math.trunc((256 / 224) * shortest_edge) } };
  },
  EfficientNet(fields, fail) {
    if (truthy(fields.rescale_offset)) return fail("rescale_offset", "isn't supported");
    if (!truthy(fields.include_top)) return {};
    // Images are divided by image_std once more.
    const { image_std = 0.5 } = fields;
    if (!truthy(fields.do_normalize)) return { do_normalize: true, image_mean: 0 };
    const square = (std: unknown) => (typeof std === "number" ? std * std : std);
    return { image_std: Array.isArray(image_std) ? image_std.map(square) : square(image_std) };
  },
};

/** CLIPImageProcessor applies each of these settings unchanged, in all versions of transformers. */
function rewritten(rewrite: Rewrite, fields: Record<string, unknown>, fail: Fail): Record<string, unknown> {
  const settings = { do_resize: true, do_normalize: true, ...fields };
  const others = Object.entries(settings).filter(([key]) => !APPLIED.includes(key));
  return {
    ...Object.fromEntries(others),
    ...rewrite(settings, fail),
    image_processor_type: "CLIPImageProcessor",
  };
}

function sides(size: unknown): { shortest_edge?: number; height?: number; width?: number } {
  if (Array.isArray(size)) return { height: size[0], width: size[1] };
  if (typeof size === "number") return square(size);
  return typeof size === "object" && size !== null ? size : {};
}

function crop_pct({ crop_pct: share }: Record<string, unknown>, fail: Fail): number {
  return typeof share === "number" && share > 0 && share < Number.POSITIVE_INFINITY
    ? share
    : fail("crop_pct", "must be a finite number above 0");
}
