import { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { msn_statistics } from "../image/msn_statistics.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";

/** The shorter side that the paper resizes to, for a crop of 224. */
const RESIZED_SHARE = 256 / 224;

/**
 * The preprocessing of the MSN paper's evaluations: the shorter side to 256 (bilinear), the central 224×224, and
 * ImageNet's mean and deviation. The hub's processors stretch the whole image to 224×224 instead. For another image_size,
 * the shorter side is 256/224 of it.
 *
 * Source: logistic_eval.py of facebookresearch/msn.
 */
export function msn_evaluation_processor({ image_grid, num_channels }: ViTMSNConfig): ViTImageProcessor {
  const { height, width } = image_grid;
  return new ViTImageProcessor({
    size: { shortest_edge: Math.round(RESIZED_SHARE * Math.max(height, width)) },
    do_center_crop: true,
    crop_size: { height, width },
    resample: "bilinear",
    ...msn_statistics(num_channels),
  });
}
