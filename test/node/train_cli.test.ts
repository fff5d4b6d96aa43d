import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Tensor, ViTImageProcessor, ViTMSNForImageClassification } from "vit-msn";
import { Trainer } from "vit-msn/training";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { repo_id } from "../../ts/cli/report/model_card.ts";
import { CLOTHES, write_image_folders } from "../support/image_folders.ts";
import { max_difference, parse_tensors } from "../support/tensors.ts";
import {
  checkpoints,
  root,
  run_with_kills,
  signal_itself,
  training_command,
} from "../support/training_cli.ts";
import { REFUSED_OPTIONS, TRANSFORMERS_OPTIONS } from "../support/transformers_options.ts";

const { start, run } = training_command("train");

let folder: string;
let images: string;
let held_out: string;
/** A small model with the classes of other images. */
let model: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-train-"));
  [images, held_out, model] = [join(folder, "images"), join(folder, "held_out"), join(folder, "model")];
  await write_image_folders(images, 0, 8);
  await write_image_folders(held_out, 90, 4);
  const small = await ViTMSNForImageClassification.from_config({
    hidden_size: 32,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    intermediate_size: 64,
    image_size: 28,
    patch_size: 4,
    num_labels: 7,
    hidden_dropout_prob: 0.05,
  });
  await small.save_pretrained(model);
  await small.dispose();
  await cp(join(root, "models/fashion/preprocessor_config.json"), join(model, "preprocessor_config.json"));
});
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
const output_folder = () => join(folder, `output-${count++}`);
const read_json = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));

const common = (output_dir: string) => [
  ...["--train_dir", images, "--validation_dir", held_out, "--output_dir", output_dir],
  ...["--model_name_or_path", model, "--ignore_mismatched_sizes", "--learning_rate", "0.003"],
];

describe("vit-msn train", () => {
  test("trains on the device that --device names", async () => {
    const steps = ["--max_steps", "1", "--device"];
    expect((await run([...common(output_folder()), ...steps, "wasm"])).code).toBe(0);
    const refused = await run([...common(output_folder()), ...steps, "tpu"]);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/device.*wasm, webgpu, auto/)]);
  });

  test("learns from folders, evaluates, and writes the model and the report", async () => {
    const output_dir = output_folder();
    const args = [
      "--model_name_or_path",
      "models/fashion",
      "--num_train_epochs",
      "3",
      "--eval_strategy",
      "epoch",
      "--logging_steps",
      "2",
      "--seed",
      "7",
    ];
    const { code, stdout, stderr } = await run([...common(output_dir), ...args]);
    expect([code, stderr]).toEqual([
      0,
      expect.stringMatching(/newly initialised: classifier\.[\s\S]*step 9\/9: .*loss/),
    ]);
    expect(stdout).toMatch(/^train_loss = [\d.]+$/m);
    expect(stdout).toMatch(/^eval_accuracy = [\d.]+$/m);
    expect((await readdir(output_dir)).sort()).toEqual([
      "README.md",
      "all_results.json",
      "checkpoint-9",
      "config.json",
      "confusion_matrix.svg",
      "eval_results.json",
      "loss_curve.svg",
      "model.safetensors",
      "preprocessor_config.json",
      "train_results.json",
      "trainer_state.json",
    ]);
    const { eval_accuracy, eval_loss } = await read_json(output_dir, "eval_results.json");
    expect(await read_json(output_dir, "all_results.json")).toMatchObject({
      eval_accuracy,
      eval_loss,
      epoch: 3,
    });
    expect(eval_accuracy).toBeGreaterThan(0.9);
    expect(
      (await read_json(output_dir, "trainer_state.json")).log_history.filter((e: object) => "eval_loss" in e),
    ).toHaveLength(3);
    const card = await readFile(join(output_dir, "README.md"), "utf8");
    expect(card).toMatch(/^---\nlibrary_name: transformers\n/);
    for (const name of Object.keys(CLOTHES)) expect(card).toContain(name);
    expect(card).not.toContain(folder);
    // models/fashion is a local folder here, and no repository of the hub.
    expect(card).not.toMatch(/base_model|huggingface\.co/);
    expect(repo_id("models/fashion")).toBeUndefined();
    expect(repo_id("../fashion")).toBeUndefined();
    expect(repo_id("facebook/vit-msn-small")).toBe("facebook/vit-msn-small");
    for (const name of ["loss_curve.svg", "confusion_matrix.svg"]) {
      expect(await readFile(join(output_dir, name), "utf8")).toMatch(
        /^<svg xmlns=[\s\S]*<title>[\s\S]*<\/svg>\n$/,
      );
    }
    // The classify command knows the classes that were learned.
    const trained = await ViTMSNForImageClassification.from_pretrained(output_dir);
    expect(Object.values(trained.config.id2label)).toEqual(Object.keys(CLOTHES).sort());
    await trained.dispose();
  });

  test("takes its options from a JSON file, splits off what it evaluates on, and freezes", async () => {
    const output_dir = output_folder();
    const options = {
      train_dir: images,
      train_val_split: 0.25,
      output_dir,
      model_name_or_path: model,
      ignore_mismatched_sizes: true,
      freeze_backbone: true,
      max_steps: 2,
      max_eval_samples: 4,
      save_strategy: "no",
    };
    const file = join(folder, "options.json");
    await writeFile(file, JSON.stringify(options));
    const { code, stdout } = await run([file, "--quiet"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/eval_loss/);
    expect(await readFile(join(output_dir, "confusion_matrix.svg"), "utf8")).toContain("<svg");
    await writeFile(file, JSON.stringify({ ...options, colour: 1 }));
    expect(await run([file])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('unknown option "colour"'),
    });
    await writeFile(file, JSON.stringify({ ...options, max_steps: "two" }));
    expect(await run([file])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("max_steps must be a positive integer"),
    });
  });

  test("killed twice, it resumes with nothing lost", async () => {
    const args = [
      "--max_steps",
      "40",
      "--save_steps",
      "4",
      "--logging_steps",
      "1",
      "--save_total_limit",
      "2",
    ];
    const [whole, killed] = [output_folder(), output_folder()];
    const undisturbed = await run([...common(whole), ...args]);
    expect(undisturbed.code).toBe(0);
    await run_with_kills((how) => start([...common(killed), ...args], how), [5, 18]);
    const history = async (output: string) =>
      (await read_json(output, "trainer_state.json")).log_history
        .filter(({ loss }: { loss?: number }) => loss !== undefined)
        .map(({ step, loss, accuracy, grad_norm }: Record<string, number>) => ({
          step,
          loss,
          accuracy,
          grad_norm,
        }));
    expect(await history(killed)).toEqual(await history(whole));
    expect(await readFile(join(killed, "model.safetensors"))).toEqual(
      await readFile(join(whole, "model.safetensors")),
    );
    expect((await readdir(killed)).filter((name) => name.endsWith(".incomplete"))).toEqual([]);
  });

  test("an interrupt saves a checkpoint and stops; the same command resumes", async () => {
    const output_dir = output_folder();
    const args = [...common(output_dir), "--max_steps", "60", "--logging_steps", "1"];
    const { code, stderr } = await run(args, { node: signal_itself("SIGINT", "step 3/") });
    expect(code).toBe(130);
    expect(stderr).toMatch(/stopped after step \d+; run the same command again to resume/);
    expect(await checkpoints(output_dir)).toHaveLength(1);
    expect((await run(args)).code).toBe(0);
  });

  test("a second training in the same folder is refused while the first one lives; after a kill it resumes", async () => {
    const output_dir = output_folder();
    const args = [...common(output_dir), "--max_steps", "30", "--save_steps", "1", "--save_total_limit", "2"];
    const first = start([...args, "--logging_steps", "1"], { node: signal_itself("SIGSTOP", "step 3/") });
    await new Promise<void>((resolve) => {
      first.stderr?.on("data", (text: Buffer) => text.toString().includes("step 3/") && resolve());
    });
    const before = await readdir(output_dir);
    const second = await run([...args, "--logging_steps", "1"]);
    expect([second.code, second.stderr]).toEqual([
      1,
      expect.stringMatching(/output-\d+ is being written by another process, process \d+ on .*\[IO\]\n$/),
    ]);
    expect(await readdir(output_dir)).toEqual(before);
    first.kill("SIGKILL");
    await first.finished;
    expect((await run([...args, "--logging_steps", "1"])).code).toBe(0);
    expect((await readdir(output_dir)).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("two Trainers can't write into one folder at once", async () => {
    const output_dir = output_folder();
    const trainers = await Promise.all(
      [0, 1].map(async () => {
        const loaded = await ViTMSNForImageClassification.from_pretrained(model);
        const pixel_values = new Tensor(
          "float32",
          new Float32Array(4 * 3 * 28 * 28).fill(0.5),
          [4, 3, 28, 28],
        );
        const train_dataset = { pixel_values, labels: [0, 1, 1, 1] };
        const args = { output_dir, max_steps: 2, save_steps: 1 };
        return { loaded, trainer: new Trainer({ model: loaded, train_dataset, args }) };
      }),
    );
    const ends = await Promise.allSettled(trainers.map(({ trainer }) => trainer.train()));
    expect(ends.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    expect(ends.find(({ status }) => status === "rejected")).toMatchObject({
      reason: { code: "IO", message: expect.stringContaining("already being written by this process") },
    });
    // The lock ends with the training.
    await trainers[0]?.trainer.train();
    for (const { loaded } of trainers) await loaded.dispose();
  });

  test("the same folder with other options is refused by their names", async () => {
    const output_dir = output_folder();
    const args = [...common(output_dir), "--max_steps", "2"];
    expect((await run(args)).code).toBe(0);
    const weights = await readFile(join(output_dir, "model.safetensors"));
    const refused = await run([...args, "--weight_decay", "0.5", "--seed", "7"]);
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(
        /was written by a run with other options or data: weight_decay was 0 and is 0\.5; seed was 42 and is 7; .*\[INVALID_ARGUMENT\]\n$/,
      ),
    ]);
    expect(await readFile(join(output_dir, "model.safetensors"))).toEqual(weights);
    const named = await run([...args, "--weight_decay", "0.5", "--resume_from_checkpoint", "checkpoint-2"]);
    expect([named.code, named.stderr]).toEqual([
      0,
      expect.stringContaining("weight_decay was 0 and is 0.5."),
    ]);
  });

  test.each(["checkpoint-99", "runs/checkpoint-2", "True"])(
    "a checkpoint %s that isn't there is not looked for on the hub",
    async (name) => {
      const output_dir = output_folder();
      const { code, stderr } = await run([...common(output_dir), "--resume_from_checkpoint", name]);
      expect([code, stderr]).toEqual([
        1,
        expect.stringContaining(
          `There is no checkpoint ${name}; pass its folder, or its name in ${output_dir}.`,
        ),
      ]);
    },
  );

  test("--report_to writes the log as the run logs it, and a resumed run continues it", async () => {
    const output_dir = output_folder();
    const logging_dir = join(folder, "logs");
    const args = [
      ...common(output_dir),
      "--save_steps",
      "2",
      "--logging_steps",
      "1",
      "--eval_strategy",
      "steps",
    ];
    const csv = ["--report_to", "csv", "--logging_dir", logging_dir];
    expect((await run([...args, ...csv, "--max_steps", "3", "--save_total_limit", "1"])).code).toBe(0);
    const { log_history: before } = await read_json(output_dir, "trainer_state.json");
    const written = async () => {
      const [header, ...lines] = (await readFile(join(logging_dir, "log.csv"), "utf8")).trimEnd().split("\n");
      expect(header).toBe("step,epoch,name,value");
      return lines.map((line) => line.split(","));
    };
    const rows = (log_history: Record<string, number>[]) =>
      log_history.flatMap(({ step, epoch, ...values }) =>
        Object.entries(values).map(([name, value]) => [`${step}`, `${epoch}`, name, `${value}`]),
      );
    expect(await written()).toEqual(rows(before));
    expect(before.map((entry: object) => Object.keys(entry))).toContainEqual(
      expect.arrayContaining(["eval_loss", "step"]),
    );
    const longer = [...args, ...csv, "--max_steps", "4", "--resume_from_checkpoint", "checkpoint-3"];
    expect((await run(longer)).code).toBe(0);
    const { log_history: after } = await read_json(output_dir, "trainer_state.json");
    expect(after.at(-1).step).toBe(4);
    expect(await written()).toEqual(rows(after));

    const other = [...common(output_folder()), ...csv, "--max_steps", "1"];
    expect(await run(other)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /log\.csv is the log of another run; choose another logging_dir.*\[INVALID_ARGUMENT\]/,
      ),
    });
    expect(await written()).toEqual(rows(after));
  });

  test("--report_to jsonl writes to output_dir; a run that was killed early starts again there", async () => {
    const output_dir = output_folder();
    await mkdir(output_dir);
    await writeFile(join(output_dir, "log.jsonl"), '{"loss":1,"step":1,"epoch":1}\n');
    const args = [...common(output_dir), "--max_steps", "2", "--logging_steps", "1", "--report_to", "jsonl"];
    expect((await run(args)).code).toBe(0);
    const { log_history } = await read_json(output_dir, "trainer_state.json");
    const lines = (await readFile(join(output_dir, "log.jsonl"), "utf8")).trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line))).toEqual(log_history);
  });

  test("a log that can't be written is an error that names it", async () => {
    const blocked = join(folder, "blocked");
    await mkdir(join(blocked, "log.csv"), { recursive: true });
    const args = [
      "--max_steps",
      "1",
      "--report_to",
      "csv",
      "--logging_dir",
      blocked,
      "--overwrite_output_dir",
    ];
    const { code, stderr } = await run([...common(output_folder()), ...args]);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/blocked\/log\.csv can't be written.*\[IO\]\n$/),
    ]);
  });

  test("a full disk is an error that keeps the earlier checkpoints", async () => {
    const output_dir = output_folder();
    const args = [...common(output_dir), "--save_steps", "2"];
    expect((await run([...args, "--max_steps", "2"])).code).toBe(0);
    const { code, stderr } = await run([...args, "--max_steps", "6"], { limit: 16 });
    expect(code).toBe(1);
    expect(stderr).toMatch(/can't be written.*\[IO\]/);
    expect(await checkpoints(output_dir)).toEqual(["checkpoint-2"]);
    expect((await readdir(output_dir)).filter((name) => name.endsWith(".incomplete"))).toEqual([]);
    expect((await run([...args, "--max_steps", "6"])).code).toBe(0);
  });

  test.each(["float32", "float16"])(
    "transformers opens what it wrote, with the same logits: %s",
    async (dtype) => {
      // What test/reference/check_trained.py recorded of a model that was trained as here.
      const recorded = await read_json(root, "test/fixtures/training/trained_logits.json");
      const samples = join(root, "models/fashion/pictures");
      const names = (await readdir(samples)).sort();
      const taught = join(folder, `taught-${dtype}`);
      for (const [label, numbers] of Object.entries<string[]>(recorded.labels)) {
        await mkdir(join(taught, label), { recursive: true });
        for (const name of names.filter((name) => numbers.includes(name.charAt(0))))
          await cp(join(samples, name), join(taught, label, name));
      }
      const output_dir = output_folder();
      const args = [
        "--train-dir",
        taught,
        "--output-dir",
        output_dir,
        ...recorded.args,
        ...recorded.cases[dtype],
      ];
      expect((await run(args)).code).toBe(0);
      const processor = await ViTImageProcessor.from_pretrained(output_dir);
      const trained = await ViTMSNForImageClassification.from_pretrained(output_dir);
      const { pixel_values } = await processor(names.map((name) => join(samples, name)));
      const { logits } = await trained.forward({ pixel_values });
      await trained.dispose();
      expect(max_difference(logits.data, recorded.logits[dtype].flat())).toBeLessThan(
        dtype === "float32" ? 1e-4 : 2e-3,
      );
    },
  );

  test("evaluates alone", async () => {
    const output_dir = output_folder();
    await mkdir(output_dir);
    const args = [
      "--do_train",
      "false",
      "--validation_dir",
      held_out,
      "--output_dir",
      output_dir,
      "--model_name_or_path",
      model,
    ];
    const { code, stdout } = await run([...args, "--ignore_mismatched_sizes"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/eval_accuracy/);
    expect((await readdir(output_dir)).sort()).toEqual([
      "all_results.json",
      "confusion_matrix.svg",
      "eval_results.json",
    ]);
  });
});

describe("an option that changes training or evaluation", () => {
  interface Result {
    losses: number[];
    eval_loss: number;
    weights: ReturnType<typeof parse_tensors>;
  }
  const weights_of = async (path: string) =>
    parse_tensors(new Uint8Array(await readFile(join(path, "model.safetensors"))));
  const steps = ["--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no"];
  const train = async (...options: string[]): Promise<Result> => {
    const output_dir = output_folder();
    expect((await run([...common(output_dir), ...steps, ...options])).code).toBe(0);
    const { log_history } = await read_json(output_dir, "trainer_state.json");
    return {
      losses: log_history.flatMap(({ loss }: { loss?: number }) => loss ?? []),
      eval_loss: (await read_json(output_dir, "eval_results.json")).eval_loss,
      weights: await weights_of(output_dir),
    };
  };
  const changed = (a: Result["weights"], b: Result["weights"]) =>
    [...a.keys()].filter((key) => String(a.get(key)?.data) !== String(b.get(key)?.data));

  let plain: Result;
  beforeAll(async () => {
    plain = await train();
  });

  test.each([
    ["--drop_path_rate", "0.5"],
    ["--rand_augment", "9"],
    ["--train_sampling_strategy", "class_balanced"],
  ])("%s %s takes effect from the first step", async (...options) => {
    const { losses } = await train(...options);
    expect(losses).toHaveLength(3);
    expect(losses[0]).not.toBe(plain.losses[0]);
  });

  test("--ema_decay saves averaged weights, and learns the same", async () => {
    const { losses, weights, eval_loss } = await train("--ema_decay", "0.9");
    expect(losses).toEqual(plain.losses);
    expect(changed(weights, plain.weights)).toContain("classifier.weight");
    expect(eval_loss).not.toBe(plain.eval_loss);
  });

  test("--lora_r changes the layers with adapters and the classifier alone", async () => {
    const start = await weights_of(model);
    const all = changed(start, plain.weights);
    expect(all.some((key) => key.includes("attention.key"))).toBe(true);
    const adapted = changed(start, (await train("--lora_r", "2")).weights);
    expect(adapted.length).toBeGreaterThan(0);
    for (const key of adapted) expect(key).toMatch(/attention\.(?:query|value)\.weight$|^classifier\./);
    const keys = changed(start, (await train("--lora_r", "2", "--lora_target_modules", "key")).weights);
    expect(keys.some((key) => key.includes("attention.key.weight"))).toBe(true);
    expect(keys.some((key) => key.includes("attention.query"))).toBe(false);
  });

  test("--test_time_augmentation flip changes evaluations alone", async () => {
    const { losses, weights, eval_loss } = await train("--test_time_augmentation", "flip");
    expect([losses, changed(weights, plain.weights)]).toEqual([plain.losses, []]);
    expect(eval_loss).not.toBe(plain.eval_loss);
  });

  test("--stratified holds out the same share of each class", async () => {
    const held_out_classes = async (...options: string[]) => {
      const output_dir = output_folder();
      const split = ["--train_dir", images, "--train_val_split", "0.125", "--seed", "1", ...options];
      const args = ["--model_name_or_path", model, "--ignore_mismatched_sizes", "--output_dir", output_dir];
      expect((await run([...split, ...args, ...steps])).code).toBe(0);
      const matrix = await readFile(join(output_dir, "confusion_matrix.svg"), "utf8");
      // The rows of the cells with a number.
      return new Set([...matrix.matchAll(/y="([\d.]+)"[^>]*>[1-9]\d*<\/text>/g)].map(([, y]) => y)).size;
    };
    expect(await held_out_classes()).toBeLessThan(3);
    expect(await held_out_classes("--stratified")).toBe(3);
  });
});

describe("lists of images", () => {
  const lines = (label_of: (name: string, i: number) => unknown) =>
    Object.keys(CLOTHES).flatMap((name) =>
      Array.from({ length: 8 }, (_, i) => ({ image: `images/${name}/${i}.png`, label: label_of(name, i) })),
    );
  const csv = (rows: readonly { image: string; label: unknown }[]) =>
    `image,label\n${rows.map(({ image, label }) => `${image},${label}\n`).join("")}`;
  const jsonl = (rows: readonly object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  const write = async (name: string, content: string) => {
    await writeFile(join(folder, name), content);
    return join(folder, name);
  };
  const options = (output_dir: string) => [
    ...["--output_dir", output_dir, "--model_name_or_path", model, "--ignore_mismatched_sizes"],
    ...["--learning_rate", "0.003", "--num_train_epochs", "2", "--save_strategy", "no"],
  ];

  test("train a classifier, with classes that the validation list must share", async () => {
    const train = await write("train.csv", csv(lines((name) => name)));
    const valid = await write(
      "valid.csv",
      "path,kind\nheld_out/bag/90.png,bag\nheld_out/sandal/91.png,sandal\n",
    );
    const output_dir = output_folder();
    const { code, stdout, stderr } = await run(["--train_file", train, ...options(output_dir)]);
    expect([code, stderr]).toEqual([0, expect.not.stringContaining("--problem-type")]);
    expect(stdout).toMatch(/eval_accuracy/);
    expect(Object.values((await read_json(output_dir, "config.json")).id2label)).toEqual(
      Object.keys(CLOTHES).sort(),
    );
    const columns = ["--image_column_name", "path", "--label_column_name", "kind"];
    const alone = await run([
      ...["--do_train", "false", "--validation_file", valid, ...columns],
      ...["--output_dir", output_folder(), "--model_name_or_path", model, "--ignore_mismatched_sizes"],
    ]);
    expect([alone.code, alone.stdout]).toEqual([0, expect.stringContaining("eval_accuracy")]);
    const unknown = await write(
      "unknown.csv",
      "image,label\nheld_out/bag/90.png,bag\nheld_out/bag/91.png,hat\n",
    );
    const args = ["--train_file", train, "--validation_file", unknown, ...options(output_folder())];
    expect(await run(args)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/unknown\.csv, line 3, column "label": .*"hat"/),
    });
  });

  test("train for several classes, with their metrics and card", async () => {
    const train = await write(
      "several.jsonl",
      jsonl(lines((name) => (name === "trouser" ? [name] : [name, "accessory"]))),
    );
    const output_dir = output_folder();
    const { code, stdout, stderr } = await run([
      ...["--train_file", train, "--eval_strategy", "epoch", "--metric_for_best_model", "f1_micro"],
      ...options(output_dir),
    ]);
    expect([code, stderr]).toEqual([
      0,
      expect.stringMatching(/labels are for multi_label_classification; .*--problem-type/),
    ]);
    expect(stdout).toMatch(/eval_f1_micro[\s\S]*eval_mean_average_precision/);
    expect(await read_json(output_dir, "config.json")).toMatchObject({
      problem_type: "multi_label_classification",
      label2id: { accessory: 0, bag: 1, sandal: 2, trouser: 3 },
    });
    const card = await readFile(join(output_dir, "README.md"), "utf8");
    expect(card).toMatch(/4 classes, several for each image: accessory, bag/);
    expect(card).toMatch(/validation loss \| F1 \|/);
    expect(await readdir(output_dir)).not.toContain("confusion_matrix.svg");
  });

  test("train for regression, of integers if --problem-type says so", async () => {
    const train = await write("numbers.csv", csv(lines((name) => Object.keys(CLOTHES).indexOf(name))));
    const output_dir = output_folder();
    const { code, stdout } = await run([
      ...["--train_file", train, "--problem_type", "regression", ...options(output_dir)],
    ]);
    expect([code, stdout]).toEqual([0, expect.stringMatching(/eval_mae[\s\S]*eval_r2/)]);
    expect(await read_json(output_dir, "config.json")).toMatchObject({
      problem_type: "regression",
      id2label: { 0: "LABEL_0" },
    });
    expect(await readFile(join(output_dir, "README.md"), "utf8")).toMatch(
      /# Image regression[\s\S]*for a number\. Trained/,
    );
  });

  test("with a missing image stop, or skip its row", async () => {
    const rows = [...lines((name) => name), { image: "images/bag/no.png", label: "bag" }];
    const train = await write("missing.csv", csv(rows));
    const stopped = await run(["--train_file", train, ...options(output_folder())]);
    expect(stopped).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/line 26 \(images\/bag\/no\.png\)/),
    });
    const skipped = await run([
      ...["--train_file", train, "--unreadable_images", "skip", ...options(output_folder())],
    ]);
    expect(skipped).toMatchObject({ code: 0, stderr: expect.stringMatching(/Skipped 1 of 25 rows/) });
  });

  test("and a folder can't both be given", async () => {
    const args = ["--train_file", "a.csv", "--train_dir", images, ...options(output_folder())];
    expect(await run(args)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/--train-dir or --train-file, not both/),
    });
  });
});

describe("wrong inputs", () => {
  test("a class without images and an image that can't be read are named, or skipped", async () => {
    const flawed = join(folder, "flawed");
    await cp(images, flawed, { recursive: true });
    await mkdir(join(flawed, "umbrella"));
    await writeFile(join(flawed, "umbrella", "notes.txt"), "not an image");
    await writeFile(join(flawed, "bag", "broken.png"), "not an image either");
    const args = [
      "--train_dir",
      flawed,
      "--train_val_split",
      "0",
      "--model_name_or_path",
      model,
      "--ignore_mismatched_sizes",
      "--max_steps",
      "4",
    ];
    const empty = await run([...args, "--output_dir", output_folder()]);
    expect(empty).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/no image of the class umbrella.*empty_classes/),
    });
    const skip_empty = [...args, "--empty_classes", "skip"];
    const broken = await run([...skip_empty, "--output_dir", output_folder()]);
    expect(broken).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/bag\/broken\.png.*unreadable_images/),
    });
    const output_dir = output_folder();
    const both = await run([...skip_empty, "--unreadable_images", "skip", "--output_dir", output_dir]);
    expect(both.code).toBe(0);
    expect(both.stderr).toMatch(/umbrella \(skipped 1 file that is not an image: \.txt 1\); skipped/);
    expect(both.stderr).toMatch(/Skipped \S*broken\.png/);
    expect(both.stderr).toMatch(/skipped 1 images that can't be read: \S*broken\.png\.\n$/);
    expect(Object.values((await read_json(output_dir, "config.json")).id2label)).toEqual([
      "bag",
      "sandal",
      "trouser",
    ]);
  });

  test("a folder of one class is refused; splits are used for training and evaluation as datasets uses them", async () => {
    const single = join(folder, "single");
    await cp(join(images, "bag"), join(single, "bag"), { recursive: true });
    const options = ["--model_name_or_path", model, "--ignore_mismatched_sizes", "--max_steps", "1"];
    expect(await run(["--train_dir", single, "--output_dir", output_folder(), ...options])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/single has images of only one class \(bag\).*\[INVALID_ARGUMENT\]/),
    });
    const splits = join(folder, "splits");
    await cp(images, join(splits, "train"), { recursive: true });
    await cp(held_out, join(splits, "test"), { recursive: true });
    const without = await run(["--train_dir", splits, "--output_dir", output_folder(), ...options]);
    expect(without).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(/splits test, train; using train/),
    });
    expect(without.stderr).toMatch(/the test split isn't used.*--validation-dir/);
    await cp(held_out, join(splits, "val"), { recursive: true });
    const output_dir = output_folder();
    const { code, stderr } = await run(["--train_dir", splits, "--output_dir", output_dir, ...options]);
    expect([code, stderr]).toEqual([0, expect.stringMatching(/using val/)]);
    expect(Object.values((await read_json(output_dir, "config.json")).id2label)).toEqual(
      Object.keys(CLOTHES).sort(),
    );
    // All that is held out, no share of what is learned from.
    const { eval_runtime, eval_samples_per_second } = await read_json(output_dir, "eval_results.json");
    expect(Math.round(eval_runtime * eval_samples_per_second)).toBe(12);
  });

  test.each([
    [["--train_dir", "nowhere", "--output_dir", "x"], 1, /nowhere.*\[NOT_FOUND\]/],
    [["--output_dir", "x"], 1, /requires --train-dir or --train-file/],
    [["--train_file", "no.csv", "--output_dir", "x"], 1, /There is no file no\.csv; .*\[NOT_FOUND\]/],
    [["--train_file", "models", "--output_dir", "x"], 1, /models isn't a list of images.*\.parquet/],
    [["--train_dir", "models"], 1, /requires --output-dir/],
    [["--learning-rate", "fast"], 2, /expected a number/],
    [["--optim", "adam"], 2, /adamw_torch, sgd, lars/],
    [["--colour"], 2, /unknown option/],
    [["--do_eval", "perhaps"], 2, /expected true or false/],
    [["none.json"], 1, /none\.json.*\[NOT_FOUND\]/],
  ])("%o", async (args, code, message) => {
    expect(await run(args)).toMatchObject({ code, stderr: expect.stringMatching(message) });
  });

  test("an output folder that holds something else isn't written into", async () => {
    const output_dir = output_folder();
    await mkdir(output_dir);
    await writeFile(join(output_dir, "thesis.txt"), "");
    const { code, stderr } = await run(common(output_dir));
    expect(code).toBe(1);
    expect(stderr).toMatch(/isn't empty.*--overwrite-output-dir/);
  });
});

describe("the options of transformers' script", () => {
  const folders = () => [
    "--train_dir",
    images,
    "--validation_dir",
    held_out,
    "--output_dir",
    output_folder(),
  ];

  test("are all taken from a file, with null for what isn't set", async () => {
    const file = join(folder, "transformers.json");
    await writeFile(file, JSON.stringify(TRANSFORMERS_OPTIONS));
    const { code, stdout, stderr } = await run([...folders(), "--model_name_or_path", model, file]);
    expect([code, stdout]).toEqual([0, expect.stringContaining("eval_accuracy = ")]);
    expect(stderr).toMatch(
      /ignored these options, which have no effect here: .*label_names.*report_to.*push_to_hub/,
    );
  });

  test("are all taken on the command line, with a line for what is ignored", async () => {
    const given = Object.entries(TRANSFORMERS_OPTIONS).filter(([, value]) => value !== null);
    const words = given.flatMap(([name, value]) => [
      `--${name}`,
      typeof value === "string"
        ? value
        : typeof value === "boolean"
          ? value
            ? "True"
            : "False"
          : JSON.stringify(value),
    ]);
    const { code, stdout, stderr } = await run([
      ...folders(),
      ...["--model_name_or_path", model, "--no_dataloader_pin_memory", "--evaluation_strategy", "no"],
      ...["--deepspeed=None", "--optim", "adamw_hf", "--lr_scheduler_type", "cosine_with_restarts"],
      ...words,
    ]);
    expect([code, stdout]).toEqual([0, expect.stringContaining("eval_accuracy = ")]);
    expect(stderr).toMatch(/^vit-msn: remove_unused_columns is ignored: /m);
    expect(stderr).toMatch(/^vit-msn: fp16 false is ignored: /m);
    expect(stderr).toMatch(/^vit-msn: deepspeed null is ignored: /m);
  });

  test.each(REFUSED_OPTIONS)("%o is refused", async (args, message) => {
    expect(await run([...folders(), ...args])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(message),
    });
  });

  test("a file with an unsupported option is refused by name", async () => {
    const file = join(folder, "refused.json");
    await writeFile(file, JSON.stringify({ push_to_hub: true }));
    const { code, stderr } = await run([...folders(), file]);
    expect([code, stderr]).toEqual([1, expect.stringContaining("push_to_hub can't be true")]);
  });

  test("logging_strategy epoch logs once an epoch, and no never logs", async () => {
    for (const [strategy, losses] of [
      ["epoch", 2],
      ["no", 0],
    ] as const) {
      const output_dir = output_folder();
      const args = [
        "--num_train_epochs",
        "2",
        "--logging_strategy",
        strategy,
        "--logging_steps",
        "1",
        "--save_strategy",
        "no",
      ];
      expect((await run([...common(output_dir), ...args, "--do_eval", "false"])).code).toBe(0);
      const { log_history } = await read_json(output_dir, "trainer_state.json");
      expect(log_history.filter((entry: { loss?: number }) => entry.loss !== undefined)).toHaveLength(losses);
    }
  });
});
