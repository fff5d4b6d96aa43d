import type { TileChoice } from "vit-msn";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { AdapterInfo } from "../../ts/engine/engine_info.ts";
import { shape_key, TileCache } from "../../ts/engine/webgpu/tile_cache.ts";
import { env } from "../../ts/env.ts";
import { temporary_directory } from "../support/directories.ts";
import { skipped } from "../support/skips.ts";
import type { Tuned, TuningProgram } from "../support/tuning.ts";
import { no_webgpu } from "../support/webgpu.ts";

// What model.tune() chose, in a program that comes later.

const in_page = typeof document !== "undefined";
const original = { ...env };

const TILES = ["128x128/8x8", "32x32/4x4", "64x64/4x4", "64x64/8x8"];

/** A choice as it is in a file. */
interface Kept {
  origin: string;
  choices: TileChoice[];
}

/** Where choices are kept: a folder in Node, a key of the Cache API in a page. */
let place: string;
let remove: () => Promise<unknown>;
let warnings: string[];
beforeEach(async () => {
  if (in_page) {
    place = `test-${crypto.randomUUID()}`;
    remove = () => caches.delete(place);
  } else {
    const directory = await temporary_directory();
    place = directory.target as string;
    remove = directory.remove;
  }
  warnings = [];
  Object.assign(env, { cache_dir: place, cache_key: place, warn: (text: string) => warnings.push(text) });
});
afterEach(async () => {
  Object.assign(env, original);
  await remove();
});

/** The files of choices, by name. */
async function files(): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  if (in_page) {
    const cache = await caches.open(place);
    for (const { url } of await cache.keys()) found.set(url, (await (await cache.match(url))?.text()) ?? "");
    return found;
  }
  const fs = await node_files();
  for (const name of await fs.readdir(`${place}/tiles`).catch(() => []))
    found.set(name, await fs.readFile(`${place}/tiles/${name}`, "utf8"));
  return found;
}

async function replace(name: string, text: string): Promise<void> {
  if (in_page) await (await caches.open(place)).put(name, new Response(text));
  else await (await node_files()).writeFile(`${place}/tiles/${name}`, text);
}

/** Rewrites the only file. */
async function rewrite(change: (kept: Kept) => unknown): Promise<void> {
  const [[name, text]] = [...(await files())] as [[string, string]];
  const changed = change(JSON.parse(text));
  await replace(name, typeof changed === "string" ? changed : JSON.stringify(changed));
}

/** The name stays out of the import expression, so that the browser's bundler doesn't look for Node's modules. */
async function node_files(): Promise<typeof import("node:fs/promises")> {
  const module_name = "node:fs/promises";
  return import(/* @vite-ignore */ module_name);
}

describe("choices", () => {
  const ADAPTER: AdapterInfo = {
    name: "A GPU",
    vendor: "of no one",
    architecture: "",
    is_software: false,
    features: ["subgroups"],
  };
  const CHOICE: TileChoice = {
    op: "linear",
    rows: 197,
    inputs: 384,
    outputs: 1152,
    dtype: "float32",
    tile: "64x64/8x8",
    default_tile: "128x128/8x8",
    ms: { "32x32/4x4": 3, "64x64/8x8": 1.5, "128x128/8x8": 2 },
  };
  const OTHER: TileChoice = { ...CHOICE, dtype: "int8", rows: 788, tile: "32x32/4x4" };

  /** What a program on an adapter finds that has chosen nothing itself. */
  async function found(adapter = ADAPTER, binary = "abc"): Promise<TileChoice[]> {
    const tiles = new TileCache(adapter, binary, undefined);
    tiles.choices.clear();
    await tiles.read();
    return [...tiles.choices.values()];
  }

  async function keep(choice: TileChoice, adapter = ADAPTER, binary = "abc"): Promise<void> {
    const tiles = new TileCache(adapter, binary, undefined);
    tiles.choices.clear();
    tiles.choices.set(shape_key(choice), choice);
    await tiles.write();
  }

  test("of several programs are cached together", async () => {
    expect(await found()).toEqual([]);
    await keep(CHOICE);
    await keep(OTHER);
    expect((await files()).size).toBe(1);
    expect(new Set(await found())).toEqual(new Set([CHOICE, OTHER]));
    const newer = { ...CHOICE, tile: "128x128/8x8" };
    await keep(newer);
    expect(new Set(await found())).toEqual(new Set([newer, OTHER]));
    expect(warnings).toEqual([]);
  });

  test.each<[string, AdapterInfo, string]>([
    ["adapter", { ...ADAPTER, name: "Another GPU" }, "abc"],
    ["adapter, by its features", { ...ADAPTER, features: [] }, "abc"],
    ["version", ADAPTER, "abd"],
  ])("of another %s are never taken", async (_, adapter, binary) => {
    await keep(CHOICE);
    expect(await found(adapter, binary)).toEqual([]);
    const [[, text]] = [...(await files())] as [[string, string]];
    await keep(OTHER, adapter, binary);
    expect((await files()).size).toBe(2);
    // As if both had one name.
    for (const name of (await files()).keys()) await replace(name, text);
    expect(await found(adapter, binary)).toEqual([]);
    expect(await found()).toEqual([CHOICE]);
  });

  const with_choice = (change: object) => (kept: Kept) => ({ ...kept, choices: [{ ...CHOICE, ...change }] });
  test.each<[string, (kept: Kept) => unknown]>([
    ["half of it", (kept) => JSON.stringify(kept).slice(0, -20)],
    ["nothing", () => " "],
    ["null", () => "null"],
    ["no choices", ({ origin }) => ({ origin })],
    ["a choice that is none", (kept) => ({ ...kept, choices: [CHOICE, null] })],
    ["a size that is none", with_choice({ rows: "all" })],
    ["no tile", with_choice({ tile: undefined })],
    ["the side of a tile", with_choice({ tile: 64 })],
    ["an unknown op", with_choice({ op: "pool" })],
    ["an unknown dtype", with_choice({ dtype: "float12" })],
    ["no times", with_choice({ ms: null })],
    ["times that are none", with_choice({ ms: { "32x32/4x4": "short" } })],
  ])("are none where the file has %s, and it is written again", async (_, damage) => {
    await keep(CHOICE);
    await rewrite(damage);
    expect(await found()).toEqual([]);
    await keep(OTHER);
    expect(await found()).toEqual([OTHER]);
    expect(warnings).toEqual([]);
  });

  test("are neither stored nor read without a cache", async () => {
    env.use_cache = false;
    await keep(CHOICE);
    expect((await files()).size).toBe(0);
    env.use_cache = true;
    await keep(CHOICE);
    env.use_cache = false;
    expect(await found()).toEqual([]);
  });

  test.skipIf(skipped(in_page, "a page has no folder that a file may stand in the way of"))(
    "that can't be stored cause one warning",
    async () => {
      await (await node_files()).writeFile(`${place}/tiles`, "a file where a folder should be");
      await keep(CHOICE);
      expect(warnings).toHaveLength(1);
      expect(warnings[0]).toMatch(/tiles can't be cached/);
      expect(await found()).toEqual([]);
    },
  );
});

/** Tunes in a program of its own: in Node by modules that are loaded again, in a page by a frame. */
async function tune(program: Omit<TuningProgram, "place"> = {}): Promise<Tuned> {
  const whole = { place, ...program };
  if (in_page) return tune_in_frame(whole);
  vi.resetModules();
  return (await import("../support/tuning.ts")).tune(whole);
}

async function tune_in_frame(program: TuningProgram): Promise<Tuned> {
  const frame = document.createElement("iframe");
  frame.src = "/test/support/program.html";
  const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
  document.body.append(frame);
  try {
    await loaded;
    const inside = frame.contentWindow as Window & { eval(code: string): unknown };
    const call = `import("/test/support/tuning.ts").then((m) => m.tune(${JSON.stringify(program)}))`;
    return (await inside.eval(call)) as Tuned;
  } finally {
    frame.remove();
  }
}

test.skipIf(no_webgpu !== undefined)(
  "a model is tuned once, for later programs too, unless it is asked for again",
  { timeout: 480_000 },
  async () => {
    const first = await tune();
    expect(first.choices.length).toBeGreaterThanOrEqual(5);
    // Times that nothing takes: they tell choices that were read. Two of them don't hold on this device.
    const told: TileChoice[] = first.choices.map((choice) => ({
      ...choice,
      tile: Object.keys(choice.ms)[0] as string,
      ms: Object.fromEntries(Object.keys(choice.ms).map((tile) => [tile, 1e3])),
    }));
    const [no_such_tile, no_such_time, ...holding] = told as [TileChoice, TileChoice, ...TileChoice[]];
    const changed = [
      { ...no_such_tile, tile: "7x7/1x1" },
      { ...no_such_time, ms: { "128x128/8x8": 1e3 } },
      ...holding,
    ];
    await rewrite(({ origin }) => ({ origin, choices: changed }));

    const second = await tune({ by_option: !in_page });
    expect(second.choices.slice(2)).toEqual(holding);
    for (const { tile, ms } of second.choices.slice(0, 2)) {
      expect(Object.keys(ms).sort()).toEqual(TILES);
      expect(ms[tile]).toBe(Math.min(...Object.values(ms)));
      expect(ms[tile]).toBeLessThan(1e3);
    }
    expect(second.logits).toEqual(first.logits);

    const third = await tune({ again: true });
    expect(third.choices).toHaveLength(first.choices.length);
    for (const { tile, ms } of third.choices) expect(ms[tile]).toBeLessThan(1e3);
    const [text] = [...(await files()).values()] as [string];
    expect(new Set((JSON.parse(text) as Kept).choices)).toEqual(new Set(third.choices));
    expect([first, second, third].flatMap((each) => each.warnings)).toEqual([]);
  },
);
