import { Tensor } from "vit-msn";
import { type Example, OriginalMSNCheckpoint, type ViewCollator } from "vit-msn/training";
import { original_state_dict, torch_dict_file } from "./original_checkpoint.ts";
import { type FixtureTensor, read_tensors } from "./tensors.ts";

/** As test/reference/msn_reference.py. */
export const REFERENCE = { images: 16, batch: 8, focal_views: 2, steps: 20, kept: 8, layers: 2 } as const;
export const FIXTURE = "test/fixtures/pretraining";

/** The options of the reference's runs, whose 20 steps are 4 epochs of 5, one of warm-up. */
export const REFERENCE_ARGS = {
  max_steps: REFERENCE.steps,
  // The stream counts as one epoch of 20 steps.
  warmup_epochs: 5 / 20,
  per_device_train_batch_size: REFERENCE.batch,
  focal_views: REFERENCE.focal_views,
  focal_size: 8,
  hidden_dim: 48,
  output_dim: 24,
  num_proto: 12,
  patch_drop: 0.45,
  logging_steps: 1,
  usage_window: 5,
} as const;

export interface Reference {
  tensors: Map<string, FixtureTensor>;
  values(name: string): Float32Array;
  /** The reference's views of the images that a step takes. */
  collate: ViewCollator;
  /** The images' places in the reference's order, endlessly. */
  stream(): AsyncGenerator<Example>;
  /** Encoder, head and prototypes as they start, in the layout of MSN's own code. */
  start(): Promise<OriginalMSNCheckpoint>;
}

export async function load_reference(): Promise<Reference> {
  const tensors = await read_tensors(`${FIXTURE}/expected.safetensors`);
  const values = (name: string) => tensors.get(name)?.data as Float32Array;
  const kept = tensors.get("in.kept")?.data as Int32Array;
  const pick = (name: string, view: number, images: readonly number[]) => {
    const { dims, data } = tensors.get(name) as FixtureTensor;
    const size = dims.slice(-3).reduce((a, b) => a * b, 1);
    const rows = images.map((image) => {
      const row = view * REFERENCE.images + image;
      return (data as Float32Array).subarray(row * size, (row + 1) * size);
    });
    return { rows, dims: dims.slice(-3) };
  };
  const stack = (name: string, views: number, images: readonly number[]) => {
    const groups = Array.from({ length: views }, (_, view) => pick(name, view, images));
    const rows = groups.flatMap((group) => group.rows);
    const data = new Float32Array(rows.flatMap((row) => [...row]));
    return new Tensor("float32", data, [rows.length, ...(groups[0] as { dims: number[] }).dims]);
  };
  return {
    tensors,
    values,
    collate: async (drawn) => {
      const step = (drawn[0]?.index ?? 0) / REFERENCE.batch;
      const images = drawn.map(({ index }) => index % REFERENCE.images);
      return {
        target: stack("in.target", 1, images),
        random: stack("in.anchor", 1, images),
        focal: stack("in.focal", REFERENCE.focal_views, images),
        visible_patches: [...kept.subarray(step * REFERENCE.kept, (step + 1) * REFERENCE.kept)],
      };
    },
    stream: async function* () {
      for (;;) yield {};
    },
    start: async () => {
      const encoder = await read_tensors(`${FIXTURE}/model.safetensors`);
      const head = [...tensors].flatMap(([name, tensor]) =>
        name.startsWith("in.head.") ? [[name.slice(3), tensor] as const] : [],
      );
      const dict = original_state_dict(new Map([...encoder, ...head]), REFERENCE.layers, "module.");
      const prototypes = tensors.get("in.prototypes") as { dims: number[]; data: Float32Array };
      const root = new Map<string, Parameters<typeof torch_dict_file>[0] | typeof prototypes | number>([
        ["encoder", dict],
        ["target_encoder", dict],
        ["prototypes", prototypes],
        ["epoch", 0],
      ]);
      return OriginalMSNCheckpoint.open(torch_dict_file(root), { num_attention_heads: 2 });
    },
  };
}
