import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { pipeline, ViTMSNForImageClassification } from "vit-msn";
import { afterAll, beforeAll, expect, test } from "vitest";
import { config_json, LABELS, make_checkpoint } from "../real_size/weights.ts";
import { root } from "../support/packed.ts";
import { type StaticServer, serve } from "../support/static_server.ts";
import { type RunningWorkerd, start_workerd } from "../support/workerd.ts";

// vit-msn-small in int8 in the edge worker of examples/, within the 128 MB that such platforms give a worker.

/** What Cloudflare's platform gives an isolate. */
const LIMIT = 128e6;
const IMAGES = ["photo.jpg", "orientation_6.jpg", "profile.jpg"].map((name) =>
  join("test/fixtures/image_files", name),
);
const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;

type Scores = { label: string; score: number }[];

let folder: string;
let server: StaticServer;
let model: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-edge-"));
  model = join(folder, "model");
  const small = await ViTMSNForImageClassification.from_pretrained(
    {
      "config.json": new TextEncoder().encode(config_json("small")),
      "model.safetensors": make_checkpoint("small"),
    },
    { device: "wasm", dtype: "int8" },
  );
  await small.save_pretrained(model);
  await small.dispose();
  await writeFile(join(model, "preprocessor_config.json"), JSON.stringify({ size: 224, do_resize: true }));
  server = await serve(model);
  await cp(join(root, "examples/edge-worker/workerd.capnp"), join(folder, "workerd.capnp"));
  await mkdir(join(folder, "dist"));
});
afterAll(async () => {
  await server?.close();
  await rm(folder, { recursive: true, force: true });
});

/** The worker, bundled as its build.js does it, from the package here. */
async function bundle(contents: string): Promise<void> {
  await build({
    stdin: { contents, resolveDir: join(root, "examples/edge-worker"), sourcefile: "worker.js" },
    outfile: join(folder, "dist/worker.js"),
    bundle: true,
    format: "esm",
    conditions: ["workerd", "worker", "browser"],
    loader: { ".wasm": "copy" },
    assetNames: "[name]",
    alias: { "vit-msn": join(root, "dist/index.edge.js") },
    logLevel: "warning",
  });
}

async function post(workerd: RunningWorkerd, image: string): Promise<Scores> {
  const response = await fetch(workerd.url, { method: "POST", body: await readFile(join(root, image)) });
  const answer = await response.json();
  if (!response.ok) throw new Error(JSON.stringify(answer));
  return answer as Scores;
}

test("vit-msn-small in int8 classifies posted images as Node does, within 128 MB", async () => {
  const worker = await readFile(join(root, "examples/edge-worker/worker.js"), "utf8");
  await bundle(worker);
  const started = performance.now();
  const workerd = await start_workerd(join(folder, "workerd.capnp"), { MODEL: server.url });
  try {
    const before = await workerd.memory();
    const answers = [await post(workerd, IMAGES[0] as string)];
    const first_ms = performance.now() - started;
    for (const image of IMAGES.slice(1)) answers.push(await post(workerd, image));
    for (let i = 0; i < 5; i++) await post(workerd, IMAGES[0] as string);
    const after = await workerd.memory();

    const classify = await pipeline("image-classification", model, { device: "wasm", dtype: "int8" });
    for (const [i, image] of IMAGES.entries()) {
      const all = await classify(join(root, image), { top_k: LABELS });
      const score_of = new Map(all.map(({ label, score }) => [label, score]));
      for (const { label, score } of answers[i] as Scores) {
        // Two builds of libjpeg decode the image: its pixels may differ by rounding.
        expect(Math.abs(score - (score_of.get(label) as number)), image).toBeLessThan(0.02);
      }
      expect(all.slice(0, 5).map(({ label }) => label)).toContain(answers[i]?.[0]?.label);
    }
    await classify.dispose();

    if (before === undefined || after === undefined) return;
    const used = after.peak - before.now;
    console.log(
      `vit-msn-small int8 in workerd: first answer ${first_ms.toFixed(0)} ms after its start; ${megabytes(used)} at most beyond ` +
        `the ${megabytes(before.now)} of an idle workerd, ${megabytes(after.now - before.now)} in the end`,
    );
    expect(used).toBeLessThan(LIMIT);
  } finally {
    await workerd.stop();
  }
});

test("what an edge worker lacks is a one-sentence error", async () => {
  await bundle(`
    import png from "@jsquash/png/codec/pkg/squoosh_png_bg.wasm";
    import jpeg from "@jsquash/jpeg/codec/dec/mozjpeg_dec.wasm";
    import { env, pipeline, RawImage, FewShotImageClassificationPipeline, VitMsnError } from "vit-msn";
    const outcome = async (work) => {
      try {
        await work();
        return "nothing";
      } catch (error) {
        return error instanceof VitMsnError ? error.code + " " + error.message : String(error);
      }
    };
    export default {
      async fetch(request, { MODEL }) {
        const bytes = new Uint8Array(await request.arrayBuffer());
        const warnings = [];
        env.warn = (message) => warnings.push(message);
        const classify = await pipeline("image-classification", MODEL, { num_threads: 2, worker: true });
        const { dims } = (await classify.processor(new RawImage(new Uint8Array(12), 2, 2, 3))).pixel_values;
        return Response.json({
          decoder: await outcome(() => RawImage.read(bytes)),
          webgpu: await outcome(() => pipeline("image-classification", MODEL, { device: "webgpu" })),
          folder: await outcome(() => pipeline("image-classification", "./model")),
          bundled: await outcome(() => pipeline("image-classification")),
          info: classify.model.engine_info,
          warnings,
          dims,
          few_shot: typeof FewShotImageClassificationPipeline,
          modules: [png, jpeg].length,
        });
      },
    };`);
  const workerd = await start_workerd(join(folder, "workerd.capnp"), { MODEL: server.url });
  try {
    const body = await readFile(join(root, IMAGES[0] as string));
    const answer = await (await fetch(workerd.url, { method: "POST", body })).json();
    expect(answer.decoder).toMatch(/^UNSUPPORTED .*no decoder for .*env\.decode/);
    expect(answer.webgpu).toMatch(/^UNSUPPORTED .*device "wasm"/);
    expect(answer.folder).toMatch(/^INVALID_ARGUMENT .*edge worker has neither folders/);
    expect(answer.bundled).toMatch(/^INVALID_ARGUMENT .*edge worker has neither folders/);
    expect(answer.info).toMatchObject({ level: "relaxed", threads: 1, worker: false });
    expect(answer.info.reasons.join(" ")).toContain("edge workers can't start others");
    expect(answer.warnings).not.toEqual([]);
    expect(answer.dims).toEqual([1, 3, 224, 224]);
    expect(answer.few_shot).toBe("function");
  } finally {
    await workerd.stop();
  }
});
