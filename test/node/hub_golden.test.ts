import { RawImage, ViTImageProcessor, ViTMSNModel } from "vit-msn";
import { describe, expect, test } from "vitest";
import { skipped } from "../support/skips.ts";

// The released checkpoints, from the hub itself: needs the network and up to 1.2 GB a model, so only when asked for:
// VIT_MSN_HUB=1 npx vitest run --project node test/node/hub_golden.test.ts

/** The image of two cats that transformers' tests use (COCO val2017, 39769). */
const CATS = "http://images.cocodataset.org/val2017/000000039769.jpg";

/** last_hidden_state[0, 0, :3] of the image, from transformers' convert_msn_to_pytorch.py. */
const GOLDEN = {
  "facebook/vit-msn-small": [-1.0915, -1.4876, -1.1809],
  "facebook/vit-msn-base": [14.2889, -18.9045, 11.7281],
  "facebook/vit-msn-large": [41.5028, -22.8681, 45.6475],
  "facebook/vit-msn-base-4": [-4.3868, 5.2932, -0.4137],
  "facebook/vit-msn-large-7": [-0.1792, -0.6465, 2.4263],
};

/** Relative to the largest value: JPEG decoders may differ by a level in a pixel. */
const TOLERANCE = 1e-3;

describe.skipIf(skipped(!process.env.VIT_MSN_HUB, "VIT_MSN_HUB isn't set"))("released checkpoints", () => {
  test.each(Object.entries(GOLDEN))("%s", { timeout: 3_600_000 }, async (repo, golden) => {
    const processor = await ViTImageProcessor.from_pretrained(repo);
    const model = await ViTMSNModel.from_pretrained(repo);
    const { pixel_values } = await processor(await RawImage.read(CATS));
    const { last_hidden_state } = await model.forward({ pixel_values });
    const scale = Math.max(...golden.map(Math.abs));
    golden.forEach((value, i) => {
      expect(Math.abs((last_hidden_state.data[i] as number) - value)).toBeLessThan(TOLERANCE * scale);
    });
    await model.dispose();
  });
});
