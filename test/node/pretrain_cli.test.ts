import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ViTImageProcessor, ViTMSNModel } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { write_image_folders } from "../support/image_folders.ts";
import { max_difference } from "../support/tensors.ts";
import {
  checkpoints,
  root,
  run_with_kills,
  signal_itself,
  training_command,
} from "../support/training_cli.ts";

const { start, run } = training_command("pretrain");

let folder: string;
let images: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-pretrain-"));
  images = join(folder, "images");
  await write_image_folders(images, 0, 8);
});
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
const output_folder = () => join(folder, `output-${count++}`);
const read_json = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));

const ENCODER = {
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  intermediate_size: 64,
  image_size: 28,
  patch_size: 4,
};
const OPTIONS = {
  per_device_train_batch_size: 8,
  focal_views: 2,
  hidden_dim: 48,
  output_dim: 24,
  num_proto: 16,
  blur_prob: 0,
};
const words = (options: Record<string, unknown>) =>
  Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
// The option output_dim must not be taken for the folder, nor the other way round.
const common = (output: string, options: Record<string, unknown> = {}) =>
  words({ train_dir: images, output_dir: output, ...ENCODER, ...OPTIONS, ...options });

describe("vit-msn pretrain", () => {
  test("learns from folders without labels, and writes the encoder and the report", async () => {
    const output = output_folder();
    const { code, stdout, stderr } = await run(
      common(output, { num_train_epochs: 3, logging_steps: 2, report_to: "jsonl" }),
    );
    expect([code, stderr]).toEqual([0, expect.stringMatching(/step 8\/9: .*prototypes_used/)]);
    expect(stdout).toMatch(/^train_loss = [\d.]+$/m);
    expect((await readdir(output)).sort()).toEqual([
      "README.md",
      "checkpoint-9",
      "config.json",
      "log.jsonl",
      "loss_curve.svg",
      "model.safetensors",
      "preprocessor_config.json",
      "prototype_use.svg",
      "train_results.json",
      "trainer_state.json",
    ]);
    const card = await readFile(join(output, "README.md"), "utf8");
    expect(card).toMatch(/^---\nlibrary_name: transformers\n/);
    expect(card).toContain("24 images");
    expect(card).not.toContain(folder);
    for (const name of ["loss_curve.svg", "prototype_use.svg"]) {
      expect(await readFile(join(output, name), "utf8")).toMatch(
        /^<svg xmlns=[\s\S]*<title>[\s\S]*<\/svg>\n$/,
      );
    }
    const model = await ViTMSNModel.from_pretrained(output);
    const processor = await ViTImageProcessor.from_pretrained(output);
    const { pixel_values } = await processor(join(images, "bag/0.png"));
    expect((await model.get_image_features({ pixel_values })).dims).toEqual([1, 32]);
    await model.dispose();

    // What it wrote can be gone on from, and the online branch is another one.
    const next = output_folder();
    const { hidden_dim, output_dim: dims, num_proto } = OPTIONS;
    const more = words({
      train_dir: images,
      ...{ hidden_dim, num_proto, per_device_train_batch_size: 8, focal_views: 1, max_steps: 2 },
      model_name_or_path: output,
      export_branch: "online",
    });
    const again = await run([...more, "--output_dim", `${dims}`, "--output_dir", next]);
    expect([again.code, again.stderr]).toEqual([0, expect.any(String)]);
    expect(await readFile(join(next, "README.md"), "utf8")).toContain("online encoder");
  });

  test.each(["target", "online"])(
    "transformers opens what it wrote, with the same CLS tokens: %s",
    async (branch) => {
      // What test/reference/check_pretrained.py recorded of an encoder that was trained as here.
      const recorded = await read_json(root, "test/fixtures/pretrained_cls.json");
      const output = output_folder();
      const { code } = await run([...recorded.args, ...recorded.cases[branch], "--output-dir", output]);
      expect(code).toBe(0);
      const samples = join(root, "models/fashion/pictures");
      const names = (await readdir(samples)).filter((name) => name.endsWith(".png")).sort();
      const model = await ViTMSNModel.from_pretrained(output);
      const processor = await ViTImageProcessor.from_pretrained(output);
      const { pixel_values } = await processor(names.map((name) => join(samples, name)));
      const cls = await model.get_image_features({ pixel_values });
      await model.dispose();
      expect(max_difference(cls.data as Float32Array, recorded.cls[branch].flat())).toBeLessThan(2e-4);
    },
  );

  test("takes its options from a JSON file", async () => {
    const output = output_folder();
    const file = join(folder, "options.json");
    const options = {
      train_dir: images,
      output_dir: output,
      ...ENCODER,
      ...OPTIONS,
      max_steps: 2,
      save_strategy: "no",
    };
    await writeFile(file, JSON.stringify({ ...options, rand_crop_scale: [0.5, 1] }));
    expect((await run([file, "--quiet", "--focal_crop_scale", "0.2,0.4"])).code).toBe(0);
    await writeFile(file, JSON.stringify({ ...options, colour: 1 }));
    expect(await run([file])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('unknown option "colour"'),
    });
    await writeFile(file, JSON.stringify({ ...options, rand_crop_scale: [1, 0.5] }));
    expect(await run([file])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("rand_crop_scale must be two numbers from 0 to 1, the lower one first"),
    });
  });

  test("killed twice, it resumes with nothing lost", async () => {
    const options = { max_steps: 12, save_steps: 3, logging_steps: 1, save_total_limit: 2 };
    const [whole, killed] = [output_folder(), output_folder()];
    expect((await run(common(whole, options))).code).toBe(0);
    await run_with_kills((how) => start(common(killed, options), how), [4, 8]);
    const history = async (output: string) =>
      (await read_json(output, "trainer_state.json")).log_history.filter(
        ({ loss }: { loss?: number }) => loss !== undefined,
      );
    expect(await history(whole)).toHaveLength(12);
    expect(await history(killed)).toEqual(await history(whole));
    expect(await readFile(join(killed, "model.safetensors"))).toEqual(
      await readFile(join(whole, "model.safetensors")),
    );
    expect((await readdir(killed)).filter((name) => name.endsWith(".incomplete"))).toEqual([]);
  });

  test("an interrupt saves a checkpoint and stops; the same command resumes", async () => {
    const output = output_folder();
    const args = common(output, { max_steps: 16, logging_steps: 1 });
    const { code, stderr } = await run(args, { node: signal_itself("SIGINT", "step 3/") });
    expect(code).toBe(130);
    expect(stderr).toMatch(/stopped after step \d+; run the same command again to resume/);
    expect(await checkpoints(output)).toHaveLength(1);
    expect((await run(args)).code).toBe(0);
  });

  test.each([
    [["--train_dir", "nowhere", "--output_dir", "x"], 1, /nowhere.*\[NOT_FOUND\]/],
    [["--train_dir", "crates/tensor", "--output_dir", "x"], 1, /holds no image/],
    [["--output_dir", "x"], 1, /requires --train-dir/],
    [["--train_dir", "models"], 1, /requires --output-dir/],
    [["--patch-drop", "2"], 2, /expected a number from 0 to 1/],
    [["--rand-crop-scale", "1"], 2, /expected two numbers/],
    [["--colour"], 2, /unknown option/],
    [["none.json"], 1, /none\.json.*\[NOT_FOUND\]/],
    [
      [
        "--train_dir",
        "models/fashion/pictures",
        "--output_dir",
        "x",
        "--model_name_or_path",
        "models/fashion",
        "--patch_size",
        "4",
      ],
      1,
      /--patch-size is for a new encoder/,
    ],
  ])("%o", async (args, code, message) => {
    expect(await run(args)).toMatchObject({ code, stderr: expect.stringMatching(message) });
  });
});
