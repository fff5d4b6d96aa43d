import { execFile } from "node:child_process";
import { access, cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { rolldown } from "rolldown";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";

// The package as npm hands it to a user: packed, installed in an empty project, nothing else from this repository.

const run = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
const bag = "models/fashion/pictures/8-bag.png";
let project: string;

beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), "vit-msn-package-"));
  await run("npm", ["pack", "--ignore-scripts", "--pack-destination", project], { cwd: root });
  const tarball = (await readdir(project)).find((name) => name.endsWith(".tgz"));
  await writeFile(join(project, "package.json"), '{ "name": "empty", "private": true, "type": "module" }');
  const install = ["install", "--no-audit", "--no-fund", "--prefer-offline", `./${tarball}`];
  await run("npm", install, { cwd: project });
  await cp(join(root, bag), join(project, "bag.png"));
}, 180_000);

afterAll(async () => {
  await rm(project, { recursive: true, force: true });
});

async function run_script(text: string): Promise<string> {
  await writeFile(join(project, "script.js"), text);
  return (await run(process.execPath, ["script.js"], { cwd: project })).stdout;
}

describe("the packed package, installed in an empty project", () => {
  it("classifies an image with the default model", async () => {
    const stdout = await run_script(`
      import { pipeline } from "vit-msn";
      const classify = await pipeline("image-classification", undefined, { num_threads: 2 });
      const [best] = await classify("bag.png", { top_k: 1 });
      console.log(JSON.stringify(best));
      await classify.dispose();
    `);
    const best = JSON.parse(stdout);
    expect(best.label).toBe("Bag");
    expect(best.score).toBeGreaterThan(0.9);
  });

  it("trains by its second entry, which shares its classes with the first", async () => {
    const stdout = await run_script(`
      import { Tensor, ViTMSNForImageClassification, VitMsnError } from "vit-msn";
      import { Trainer } from "vit-msn/training";
      const config = { hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, image_size: 8, patch_size: 4 };
      const model = await ViTMSNForImageClassification.from_config(config);
      const pixel_values = new Tensor("float32", new Float32Array(4 * 192).fill(0.5), [4, 3, 8, 8]);
      const data = { pixel_values, labels: [0, 1, 1, 1] };
      const trainer = new Trainer({ model, train_dataset: data, args: { max_steps: 30, learning_rate: 0.01, save_strategy: "no" } });
      const { training_loss } = await trainer.train();
      const refused = (() => { try { new Trainer({ model, args: { colour: 1 } }); } catch (error) { return error; } })();
      console.log(JSON.stringify([training_loss < 0.68, refused instanceof VitMsnError]));
      await model.dispose();
    `);
    expect(JSON.parse(stdout)).toEqual([true, true]);
  });

  it("has one copy of every class, whichever entry it is imported by", async () => {
    const stdout = await run_script(`
      import * as main from "vit-msn";
      import { FewShotImageClassificationPipeline } from "vit-msn/few-shot";
      import * as all from "vit-msn/static";
      const teach = await main.pipeline("few-shot-image-classification", undefined, { device: "wasm" });
      const differ = Object.keys(main).filter((name) => main[name] !== all[name]);
      console.log(JSON.stringify([
        teach instanceof FewShotImageClassificationPipeline,
        all.FewShotImageClassificationPipeline === FewShotImageClassificationPipeline,
        differ,
        [main.Tensor.name, main.RawImage.name, main.ViTMSNModel.name, teach.constructor.name],
      ]));
      await teach.dispose();
    `);
    const names = ["Tensor", "RawImage", "ViTMSNModel", "FewShotImageClassificationPipeline"];
    expect(JSON.parse(stdout)).toEqual([true, true, [], names]);
  });

  it.each([
    ["VitMsnError", 4_250],
    ["Tensor", 4_250],
    ["ViTMSNConfig", 43_800],
    ["RawImage", 31_500],
    ["pipeline", 129_700],
  ])("costs an app that uses %s alone no more than %i bytes at first", async (name, most) => {
    await writeFile(join(project, "app.js"), `import { ${name} } from "vit-msn"; console.log(${name});`);
    const bundle = await rolldown({
      input: join(project, "app.js"),
      platform: "browser",
      logLevel: "silent",
    });
    const { output } = await bundle.generate({ minify: true });
    const chunks = output.filter((file) => file.type === "chunk");
    const at_first = new Set(chunks.filter(({ isEntry }) => isEntry).map(({ fileName }) => fileName));
    for (const file of at_first)
      for (const imported of chunks.find(({ fileName }) => fileName === file)?.imports ?? [])
        at_first.add(imported);
    const sizes = chunks.filter(({ fileName }) => at_first.has(fileName)).map(({ code }) => code.length);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBeLessThan(most);
  });

  it("puts the command line on the path", async () => {
    const { stdout } = await run("npx", ["--no-install", "vit-msn", "classify", "bag.png", "--json"], {
      cwd: project,
    });
    expect(stdout).toContain("Bag");
  });

  it.each(["bundler", "node16"])("has types for a consumer with moduleResolution %s", async (resolution) => {
    await writeFile(join(project, "consumer.ts"), consumer);
    const module_kind = resolution === "bundler" ? "esnext" : "node16";
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const options = [
      "--noEmit",
      "--strict",
      "--target",
      "es2022",
      "--types",
      "",
      "--lib",
      "es2023,dom,esnext.disposable",
    ];
    const kind = ["--module", module_kind, "--moduleResolution", resolution];
    // skipLibCheck stays off: the package's own declarations have to hold without this repository's packages.
    await run(process.execPath, [tsc, ...options, ...kind, "consumer.ts"], { cwd: project }).catch(
      (error) => {
        throw new Error(error.stdout);
      },
    );
  });

  it("contains what the package needs and nothing else", async () => {
    const files = await readdir(join(project, "node_modules/vit-msn"), { recursive: true });
    for (const level of ["simd128", "relaxed", "relaxed_wide"])
      for (const threads of ["", "_threads"]) expect(files).toContain(`dist/vit_msn_${level}${threads}.wasm`);
    expect(files).toContain("dist/models/fashion/model.safetensors");
    expect(files).toContain("LICENSE");
    expect(files.filter((name) => /test1000|\.test\.|^ts\b|^crates\b/.test(name))).toEqual([]);
  });

  it("has no program that starts itself in a Worker, which Turbopack would bundle without end", async () => {
    const dist = join(project, "node_modules/vit-msn/dist");
    const programs = (await readdir(dist)).filter((name) => name.endsWith(".js"));
    const starts_itself = async (name: string) =>
      new RegExp(`new URL\\([\`"']\\./${name}`).test(await readFile(join(dist, name), "utf8"));
    const found = await Promise.all(programs.map(async (name) => [name, await starts_itself(name)] as const));
    expect(found.filter(([, is_found]) => is_found).map(([name]) => name)).toEqual([]);
  });
});

describe("the package as the release workflow publishes it", () => {
  it("names its home, and its README has no link that the registry's page can't follow", async () => {
    const copy = await mkdtemp(join(tmpdir(), "vit-msn-published-"));
    onTestFinished(() => rm(copy, { recursive: true, force: true }));
    for (const file of ["package.json", "README.md"]) await cp(join(root, file), join(copy, file));
    const home = "https://git.example/vit-msn/vit-msn";
    await run(process.execPath, [join(root, "scripts/publish_metadata.mjs"), home, "v0.1.0"], { cwd: copy });
    const [packed] = JSON.parse((await run("npm", ["pack", "--json"], { cwd: copy })).stdout);
    await run("tar", ["-xzf", packed.filename], { cwd: copy });
    const { repository, homepage, bugs } = JSON.parse(await text(join(copy, "package/package.json")));
    expect({ repository, homepage, bugs }).toEqual({
      repository: { type: "git", url: `git+${home}.git` },
      homepage: `${home}#readme`,
      bugs: { url: `${home}/issues` },
    });
    const readme = await text(join(copy, "package/README.md"));
    const targets = [...readme.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target as string);
    expect(targets.filter((target) => !target.startsWith("https://"))).toEqual([]);
    const own = targets.filter((target) => target.startsWith(home));
    expect(own).toContain(`${home}/raw/v0.1.0/examples/studio/screenshots/attention.webp`);
    for (const target of own) {
      const path = target.replace(`${home}/`, "").replace(/^(raw|blob)\/v0\.1\.0\//, "");
      await expect(access(join(root, path.replace(/#.*/, "")))).resolves.toBeUndefined();
    }
  });
});

function text(path: string): Promise<string> {
  return readFile(path, "utf8");
}

const consumer = `
import { env, pipeline, RawImage, Tensor, ViTImageProcessor, ViTMSNForImageClassification } from "vit-msn";
import { EarlyStoppingCallback, ImageFolder, Trainer, type TrainingOptions } from "vit-msn/training";
env.use_cache = false;
const model = await ViTMSNForImageClassification.from_pretrained("some/repo", { dtype: "float32" });
const processor = await ViTImageProcessor.from_pretrained("some/repo");
const { pixel_values } = await processor(await RawImage.read("bag.png"));
const out = await model.forward({ pixel_values, output_attentions: true });
const dims: readonly number[] = out.logits.dims;
const tensor: Tensor = new Tensor("float32", new Float32Array(3), [1, 3]);
const classify = await pipeline("image-classification");
const results: { label: string; score: number }[] = await classify("bag.png", { top_k: 5 });
const args: TrainingOptions = { output_dir: "out", eval_strategy: "epoch", save_strategy: "epoch" };
const callbacks = [new EarlyStoppingCallback()];
const train_dataset = await ImageFolder.open("images");
const trainer = new Trainer({ model, args, image_processor: processor, train_dataset, callbacks });
const loss: number = (await trainer.train({ resume_from_checkpoint: true })).training_loss;
export { dims, loss, results, tensor };
`;
