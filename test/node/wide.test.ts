import { rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { env, ViTMSNForImageClassification } from "vit-msn";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { load_wasm_module } from "../../ts/engine/wasm/load_wasm.ts";
import { check_wide, type Time } from "../../ts/engine/wasm/wide_check.ts";
import { read_file } from "../support/files.ts";
import { newest_node } from "../support/runtimes.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const CONFIG = { hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 96 };
const V8 = Number.parseInt(process.versions.v8, 10);

const module_of = async (level: string) =>
  load_wasm_module(new Uint8Array(await read_file(`dist/vit_msn_${level}.wasm`)));

/** Times of runs in milliseconds, one list for each engine; the last one is repeated. */
function scripted(times: Record<"ordinary" | "wide", number[]>): Time {
  const left = { ordinary: [...times.ordinary], wide: [...times.wide] };
  return (engine, run) => {
    run();
    const [time = 0] = left[engine];
    if (left[engine].length > 1) left[engine].shift();
    return time;
  };
}

describe("the wide engine's check", () => {
  const check = async (time: Time, ordinary = "relaxed") =>
    check_wide(await module_of(ordinary), await module_of("relaxed_wide"), time);

  test("accepts vectors that are joined, once both engines' code is optimised", async () => {
    const unoptimised = Array<number>(20).fill(8);
    expect(
      await check(scripted({ ordinary: [...unoptimised, 2], wide: [...unoptimised, 1] })),
    ).toBeUndefined();
    // The wide engine's code is optimised first: its time isn't compared with the other's slow code.
    const ordinary = [...unoptimised, ...unoptimised, 2];
    expect(await check(scripted({ ordinary, wide: [...unoptimised, 1] }))).toBeUndefined();
  });

  test.each([
    ["are slower", { ordinary: [8, 2], wide: [8, 3] }],
    ["gain nothing", { ordinary: [8, 2], wide: [8, 2] }],
    ["are never optimised", { ordinary: [8], wide: [8] }],
    ["are compared with code that is never optimised", { ordinary: [80], wide: [80, 15] }],
  ])("rejects vectors that %s", async (_, times) => {
    expect(await check(scripted(times))).toMatch(/doesn't join vectors/);
  });

  test("rejects other bits, however fast", async () => {
    const time = scripted({ ordinary: [8, 2], wide: [8, 1] });
    expect(await check(time, "simd128")).toMatch(/doesn't give the same bits/);
  });
});

describe("env.wide_vectors", () => {
  afterEach(() => {
    env.wide_vectors = undefined;
  });
  const open = async () => {
    const model = await ViTMSNForImageClassification.from_config(CONFIG, { device: "wasm" });
    const { engine_info } = model;
    await model.dispose();
    return engine_info;
  };

  test("is off by default", async () => {
    expect((await open()).level).toMatch(/^(simd128|relaxed)$/);
  });

  test("chooses the wide engine, or reports why not", async () => {
    env.wide_vectors = true;
    const { level, reasons } = await open();
    if (V8 < 13) expect(reasons).toContain("Wide vectors need Node 24 or newer.");
    else if (level !== "relaxed-wide") expect(reasons.join(" ")).toMatch(/V8 doesn't join vectors|x64/);
  });

  test("refuses other values", () => {
    expect(() => Object.assign(env, { wide_vectors: "yes" })).toThrow("true or false");
  });
});

const node = await newest_node();
if (node === undefined) console.log("Joined vectors are not tested: build.sh test installs the newest Node.");

describe.skipIf(node === undefined)("in the newest Node, whose V8 joins vectors", () => {
  const program = `${root}.out/wide/compare.mjs`;
  beforeAll(() =>
    build({
      entryPoints: [`${root}test/node/wide/compare.ts`],
      outfile: program,
      bundle: true,
      platform: "node",
      format: "esm",
      target: "node20",
      packages: "external",
    }),
  );
  afterAll(() => rm(`${root}.out/wide`, { recursive: true }));

  // --no-liftoff: all code is that of the optimising compiler, from the first call.
  test.each(["", "_threads"])(
    "every op gives the relaxed engine's bits: vit_msn_relaxed_wide%s",
    async (threads) => {
      const files = ["relaxed", "relaxed_wide"].map((level) => `${root}dist/vit_msn_${level}${threads}.wasm`);
      const output = await node?.run_with(
        ["--no-liftoff", "--experimental-wasm-revectorize"],
        program,
        files,
        root,
      );
      const { cases, different } = JSON.parse(output ?? "") as { cases: number; different: string[] };
      expect(different).toEqual([]);
      expect(cases).toBeGreaterThan(30);
    },
  );

  test.each([
    ["with V8's flag", ["--experimental-wasm-revectorize"], "undefined"],
    ["with env.wide_vectors", [], "true"],
    ["with neither", [], "undefined"],
    ["with the flag and env.wide_vectors false", ["--experimental-wasm-revectorize"], "false"],
  ] as const)("%s, from_pretrained chooses an engine", async (_, flags, setting) => {
    const script = `
      import { env, ViTMSNForImageClassification } from "${root}dist/index.node.js";
      env.wide_vectors = ${setting};
      const infos = [];
      for (const num_threads of [1, 2]) for (const worker of [false, true]) {
        const options = { device: "wasm", num_threads, worker };
        const model = await ViTMSNForImageClassification.from_config(${JSON.stringify(CONFIG)}, options);
        infos.push(model.engine_info);
        await model.dispose();
      }
      console.log(JSON.stringify(infos));`;
    const output = await node?.run_with([...flags, "--input-type=module", "-e"], script, [], root);
    const is_wanted = setting === "true" || (flags.length > 0 && setting !== "false");
    for (const { level, reasons } of JSON.parse(output ?? "") as { level: string; reasons: string[] }[]) {
      const not_wide = reasons.filter((reason) => /vector/.test(reason));
      // Whether vectors are joined depends on the processor, and whether that is seen on its other load.
      if (is_wanted) expect(level.startsWith("relaxed-wide") ? 0 : 1).toBe(not_wide.length);
      else expect([level.replace("+threads", ""), not_wide]).toEqual(["relaxed", []]);
    }
  });
});
