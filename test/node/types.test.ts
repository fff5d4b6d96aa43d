import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

// The declarations in dist/types, in the oldest TypeScript that is supported and the newest, with the types of pages or of Node
// alone, and without skipLibCheck: they hold by themselves.

const run = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(root, "node_modules/.types-"));
});
afterAll(() => rm(folder, { recursive: true }));

const COMPILERS = ["test/typescript-5.5/node_modules/typescript", "node_modules/typescript"];
const LIBRARIES: Readonly<Record<string, { lib: string[]; types: string[] }>> = {
  "Node alone": { lib: ["es2023"], types: ["node"] },
  "pages alone": { lib: ["es2023", "dom"], types: [] },
  both: { lib: ["es2023", "dom"], types: ["node"] },
};

/** What a compiler says of a program. */
async function diagnose(compiler: string, library: string, program: string): Promise<string[]> {
  const name = `${compiler}-${library}`.replaceAll(/[ /]/g, "-");
  await writeFile(join(folder, `${name}.ts`), program);
  const compilerOptions = {
    ...LIBRARIES[library],
    ...{ strict: true, noEmit: true, skipLibCheck: false, target: "es2022" },
    ...{ module: "esnext", moduleResolution: "bundler", typeRoots: [join(root, "node_modules/@types")] },
  };
  const project = join(folder, `${name}.json`);
  await writeFile(project, JSON.stringify({ compilerOptions, files: [`${name}.ts`] }));
  const tsc = join(root, compiler, "bin/tsc");
  const { stdout } = await run(process.execPath, [tsc, "-p", project, "--pretty", "false"]).catch(
    (error) => error,
  );
  return (stdout as string).split("\n").filter((line) => line.includes("error"));
}

const types = (entry: string) => JSON.stringify(join(root, "dist/types", entry));
const imports = `
import { env, pipeline, RawImage, ViTMSNConfig, ViTMSNModel, type ProgressInfo } from ${types("index.js")};
import { FewShotImageClassificationPipeline } from ${types("few_shot.js")};
import { Trainer } from ${types("training/index.js")};
export { FewShotImageClassificationPipeline, pipeline, RawImage, Trainer };
env.use_cache = false;
`;
const right = `${imports}
await ViTMSNModel.from_pretrained("x", { device: "webgpu", num_threads: 2, wasm: new Uint8Array(8) });
export function percent(info: ProgressInfo): number {
  if (info.status === "ready") return 100;
  const name: string = info.file;
  if (info.status === "initiate") return 0 * name.length;
  const { loaded, total, progress }: { loaded: number; total: number; progress: number } = info;
  return total === 0 ? loaded : progress;
}
`;
const on_a_page = `
declare const device: GPUDevice, gpu: GPU, image: HTMLImageElement, video: HTMLVideoElement, canvas: HTMLCanvasElement;
declare const off: OffscreenCanvas, bitmap: ImageBitmap, frame: VideoFrame, data: ImageData, folder: FileSystemDirectoryHandle;
declare const compiled: WebAssembly.Module;
`;
const page = `${imports}${on_a_page}
env.webgpu.gpu = gpu;
for (const input of [image, video, canvas, off, bitmap, frame, data]) await RawImage.read(input);
const model = await ViTMSNModel.from_pretrained("x", { device, wasm: compiled });
await model.save_pretrained(folder);
`;
/** A line each, all of which are errors. */
const WRONG = [
  `await ViTMSNModel.from_pretrained("x", { device: "gpu" });`,
  `await ViTMSNModel.from_pretrained("x", { device: { name: "gpu" } });`,
  `await ViTMSNModel.from_pretrained("x", { num_thread: 2 });`,
  `await ViTMSNModel.from_config({ hiden_size: 48 });`,
  `new ViTMSNConfig({ num_label: 3 });`,
  `await RawImage.read(3);`,
  `env.cacheDir = "x";`,
  `export const total = (info: ProgressInfo): number => info.total;`,
];

describe.each(COMPILERS)("%s", (compiler) => {
  test.each(Object.keys(LIBRARIES))("with the types of %s", { timeout: 300_000 }, async (library) => {
    const found = await diagnose(compiler, library, `${right}${WRONG.join("\n")}`);
    const first = right.split("\n").length;
    expect(found.filter((error) => error.includes("dist/types"))).toEqual([]);
    const lines = found.map((error) => Number(/\((\d+),/.exec(error)?.[1]));
    expect([...new Set(lines)]).toEqual(WRONG.map((_, i) => first + i));
  });
});

test("the types of pages fit", { timeout: 300_000 }, async () => {
  expect(await diagnose("typescript", "pages alone", page)).toEqual([]);
});
