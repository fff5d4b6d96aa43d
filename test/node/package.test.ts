import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

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
  it("classifies a picture with the default model", async () => {
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
    for (const level of ["simd128", "relaxed", "simd128_threads", "relaxed_threads"])
      expect(files).toContain(`dist/vit_msn_${level}.wasm`);
    expect(files).toContain("dist/models/fashion/model.safetensors");
    expect(files).toContain("LICENSE");
    expect(files.filter((name) => /test1000|\.test\.|^ts\b|^crates\b/.test(name))).toEqual([]);
  });
});

const consumer = `
import { env, pipeline, RawImage, Tensor, ViTImageProcessor, ViTMSNForImageClassification } from "vit-msn";
env.use_cache = false;
const model = await ViTMSNForImageClassification.from_pretrained("some/repo", { dtype: "float32" });
const processor = await ViTImageProcessor.from_pretrained("some/repo");
const { pixel_values } = await processor(await RawImage.read("bag.png"));
const out = await model.forward({ pixel_values, output_attentions: true });
const dims: readonly number[] = out.logits.dims;
const tensor: Tensor = new Tensor("float32", new Float32Array(3), [1, 3]);
const classify = await pipeline("image-classification");
const results: { label: string; score: number }[] = await classify("bag.png", { top_k: 5 });
export { dims, results, tensor };
`;
