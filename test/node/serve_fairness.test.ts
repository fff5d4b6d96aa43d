import { EventEmitter, setMaxListeners } from "node:events";
import { describe, expect, test } from "vitest";
import { Batcher } from "../../ts/cli/serve/batcher.ts";
import { LARGE_LANE, Lanes, type Place, SMALL_LANE } from "../../ts/cli/serve/lanes.ts";
import { Preparers, type PrepareWorker } from "../../ts/cli/serve/preparers.ts";
import type { ServedTask } from "../../ts/cli/serve/served_task.ts";
import { RawImage, VitMsnError } from "../../ts/index.ts";
import { BAG, read_here, sizes, start_app } from "../support/http_app.ts";

// How the server shares workers, memory and engines among small and large images.

const SMALL = 1_000_000;
const LARGE = 96_000_000;
const never = new AbortController().signal;
setMaxListeners(0, never);
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Images that want to be prepared; a test lets each start and end. */
class Images {
  readonly lanes: Lanes;
  readonly started: string[] = [];
  readonly places = new Map<string, Place>();

  constructor(workers: number, memory: number) {
    this.lanes = new Lanes({ workers, memory });
  }

  async enter(name: string, bytes: number, signal = never): Promise<void> {
    const place = await this.lanes.enter(bytes, signal);
    this.started.push(name);
    this.places.set(name, place);
  }

  /** Ends images, and gives those that start. */
  async end(...names: string[]): Promise<string[]> {
    const before = this.started.length;
    for (const name of names) this.places.get(name)?.leave();
    await turn();
    return this.started.slice(before);
  }
}

describe("lanes", () => {
  test("large images never take the last worker, and each lane keeps its order", async () => {
    const images = new Images(3, 1e9);
    for (const name of ["L1", "L2", "L3", "L4"]) void images.enter(name, LARGE);
    await turn();
    expect(images.started).toEqual(["L1", "L2"]);
    for (const name of ["s1", "s2"]) void images.enter(name, SMALL);
    await turn();
    expect(images.started).toEqual(["L1", "L2", "s1"]);
    expect(await images.end("s1")).toEqual(["s2"]);
    expect(await images.end("L1", "L2", "s2")).toEqual(["L3", "L4"]);
  });

  test("small images use every worker, and large ones get their share of them", async () => {
    const images = new Images(2, 1e9);
    for (let i = 0; i < 300; i++) void images.enter(`s${i}`, SMALL);
    for (let i = 0; i < 3; i++) void images.enter(`L${i}`, LARGE);
    await turn();
    expect(images.started).toEqual(["s0", "s1"]);
    const before_large: number[] = [];
    for (let small = 0; images.started.length < 303; ) {
      const name = images.started.find((each) => images.places.has(each)) as string;
      const started = await images.end(name);
      images.places.delete(name);
      for (const each of started) {
        if (each.startsWith("s")) small++;
        else before_large.push(small);
      }
    }
    // A large image costs as much as 96 small ones.
    expect(before_large[0]).toBeLessThan(5);
    expect(before_large[1]).toBeGreaterThan(80);
    expect(before_large[1]).toBeLessThan(110);
    expect(before_large[2]).toBeGreaterThan(180);
  });

  test("a lane that was idle has no claims from that time", async () => {
    const images = new Images(2, 1e9);
    for (let i = 0; i < 50; i++) {
      void images.enter(`L${i}`, LARGE);
      await turn();
      await images.end(`L${i}`);
    }
    for (let i = 0; i < 10; i++) void images.enter(`s${i}`, SMALL);
    void images.enter("late", LARGE);
    await turn();
    expect([...(await images.end("s0")), ...(await images.end("s1"))]).toContain("late");
  });

  test("bytes are bounded, what a prepared image frees is used, and small images pass a large one that waits", async () => {
    const images = new Images(4, 200_000_000);
    for (const name of ["L1", "L2", "L3"]) void images.enter(name, LARGE);
    void images.enter("s1", SMALL);
    await turn();
    expect(images.started).toEqual(["L1", "L2", "s1"]);
    images.places.get("L1")?.prepared(150_000);
    await turn();
    expect(images.started).toEqual(["L1", "L2", "s1", "L3"]);
  });

  test("an image that exceeds the memory is decoded alone", async () => {
    const images = new Images(4, 50_000_000);
    void images.enter("L1", LARGE);
    void images.enter("L2", LARGE);
    await turn();
    expect(images.started).toEqual(["L1"]);
    expect(await images.end("L1")).toEqual(["L2"]);
  });

  test("an image whose client has gone leaves its lane; leaving twice frees nothing twice", async () => {
    const images = new Images(2, 100_000_000);
    const gone = new AbortController();
    void images.enter("L1", LARGE);
    const waiting = images.enter("L2", LARGE, gone.signal);
    void images.enter("L3", LARGE);
    gone.abort(new Error("gone"));
    await expect(waiting).rejects.toThrow("gone");
    await expect(images.enter("L4", SMALL, gone.signal)).rejects.toThrow("gone");
    expect(await images.end("L1", "L1")).toEqual(["L3"]);
    void images.enter("L5", LARGE);
    await turn();
    expect(images.started).toEqual(["L1", "L3"]);
  });
});

/** A task that computes when a test says so. */
function slow_task(engines: number) {
  const batches: string[][] = [];
  const pending: (() => void)[] = [];
  const names = new WeakMap<RawImage, string>();
  const image = (name: string) => {
    const made = new RawImage(new Uint8Array(3), 1, 1, 3);
    names.set(made, name);
    return made;
  };
  const task: ServedTask = {
    state: "ok",
    engines,
    prepare: read_here,
    compute: async (images) => {
      batches.push(images.map((each) => names.get(each) as string));
      await new Promise<void>((resolve) => pending.push(resolve));
      return images.map(() => ({ values: [0] }));
    },
  };
  const finish = async () => {
    pending.shift()?.();
    await turn();
  };
  return { task, batches, image, finish };
}

describe("batches", () => {
  const options = { max_batch: 4, max_wait_ms: 0, on_batch: () => {} };

  test("small and large images get the same share of each", async () => {
    const { task, batches, image, finish } = slow_task(1);
    const batcher = new Batcher(task, options);
    const answers = [batcher.submit(image("first"), SMALL_LANE, never)];
    while (batches.length === 0) await turn();
    for (let i = 0; i < 6; i++) answers.push(batcher.submit(image(`L${i}`), LARGE_LANE, never));
    for (let i = 0; i < 3; i++) answers.push(batcher.submit(image(`s${i}`), SMALL_LANE, never));
    for (let i = 0; i < 4; i++) await finish();
    await Promise.all(answers);
    expect(batches.slice(1).map((batch) => batch.toSorted())).toEqual([
      ["L0", "L1", "s0", "s1"],
      ["L2", "L3", "L4", "s2"],
      ["L5"],
    ]);
  });

  test("several engines compute at a time, and share what waits", async () => {
    const { task, batches, image, finish } = slow_task(2);
    const batcher = new Batcher(task, options);
    const submit = (name: string) => batcher.submit(image(name), SMALL_LANE, never);
    const answers = ["a", "b"].map(submit);
    while (batches.length < 2) await turn();
    expect(batches).toEqual([["a"], ["b"]]);
    answers.push(...["c", "d", "e", "f", "g", "h"].map(submit));
    expect(batches).toHaveLength(2);
    await finish();
    expect(batches.slice(2)).toEqual([["c", "d", "e", "f"]]);
    for (let i = 0; i < 3; i++) await finish();
    await Promise.all(answers);
    expect(batches.slice(3)).toEqual([["g", "h"]]);
  });
});

test("an image that is given up while it waits isn't computed; one in a batch doesn't stop the others", async () => {
  const { task, batches, image, finish } = slow_task(1);
  const sizes_of_batches: number[] = [];
  const batcher = new Batcher(task, {
    max_batch: 4,
    max_wait_ms: 0,
    on_batch: (size) => sizes_of_batches.push(size),
  });
  const early = new AbortController();
  const late = new AbortController();
  const computed = batcher.submit(image("computed"), SMALL_LANE, early.signal);
  while (batches.length === 0) await turn();
  const waiting = batcher.submit(image("waiting"), SMALL_LANE, late.signal);
  const other = batcher.submit(image("other"), SMALL_LANE, never);
  early.abort(new Error("too late"));
  late.abort(new Error("in time"));
  await expect(computed).rejects.toThrow("too late");
  await expect(waiting).rejects.toThrow("in time");
  await expect(batcher.submit(image("gone"), SMALL_LANE, late.signal)).rejects.toThrow("in time");
  await finish();
  await finish();
  expect(await other).toEqual({ values: [0] });
  expect(batches).toEqual([["computed"], ["other"]]);
  expect(sizes_of_batches).toEqual([1, 1]);
});

describe("the threads that prepare images", () => {
  class FakeWorker extends EventEmitter {
    readonly requests: { file: { bytes: Uint8Array } }[] = [];
    postMessage(request: { file: { bytes: Uint8Array } }): void {
      this.requests.push(request);
    }
    unref(): void {}
    async terminate(): Promise<number> {
      return 0;
    }
  }

  function start(count: number) {
    const workers: FakeWorker[] = [];
    const preparers = new Preparers(count, () => {
      const worker = new FakeWorker();
      workers.push(worker);
      return worker as unknown as PrepareWorker;
    });
    const file = { name: "The image", bytes: BAG };
    const prepare = () => preparers.prepare({ file, max_pixels: 1e6, processor: 0 });
    return { workers, prepare };
  }

  const pixels = { data: new Uint8Array(3), width: 1, height: 1, channels: 3 };

  test("each image goes to the one with the least work", async () => {
    const { workers, prepare } = start(2);
    const images = [prepare(), prepare(), prepare()];
    expect(workers.map(({ requests }) => requests.length)).toEqual([2, 1]);
    workers[1]?.emit("message", pixels);
    images.push(prepare(), prepare());
    expect(workers.map(({ requests }) => requests.length)).toEqual([3, 2].toSorted());
    for (const worker of workers) for (let i = 0; i < 3; i++) worker.emit("message", pixels);
    expect((await Promise.all(images)).map(({ size }) => size)).toEqual(Array(5).fill([1, 1]));
  });

  test("an image's error is its own; a thread that ends is replaced", async () => {
    const { workers, prepare } = start(1);
    const [bad, lost, also_lost] = [prepare(), prepare(), prepare()];
    workers[0]?.emit("message", { code: "INVALID_IMAGE", message: "It is no image." });
    await expect(bad).rejects.toEqual(new VitMsnError("INVALID_IMAGE", "It is no image."));
    workers[0]?.emit("error", new Error("out of memory"));
    workers[0]?.emit("exit", 1);
    await expect(lost).rejects.toThrow("The thread that decodes images was lost: out of memory.");
    await expect(also_lost).rejects.toThrow("was lost");
    const next = prepare();
    expect(workers).toHaveLength(2);
    workers[1]?.emit("message", pixels);
    expect((await next).size).toEqual([1, 1]);
  });
});

describe("a server with large requests under way", () => {
  /** A task whose preparation a test ends. */
  function held() {
    const waiting: (() => void)[] = [];
    let running = 0;
    const prepare: ServedTask["prepare"] = async (file, max_pixels) => {
      running++;
      if (file.bytes.length > 1000) await new Promise<void>((resolve) => waiting.push(resolve));
      running--;
      return read_here(file, max_pixels);
    };
    return { task: { ...sizes, prepare }, release: () => waiting.shift()?.(), running: () => running };
  }

  /** A BMP file without compression, whose header doesn't give its size to the server. */
  function large_image(side: number): Buffer {
    const bmp = Buffer.alloc(54 + side * side * 3);
    bmp.write("BM");
    bmp.writeUInt32LE(bmp.length, 2);
    for (const [at, value] of [
      [10, 54],
      [14, 40],
      [18, side],
      [22, side],
    ] as const)
      bmp.writeUInt32LE(value, at);
    bmp.writeUInt16LE(1, 26);
    bmp.writeUInt16LE(24, 28);
    return bmp;
  }

  test("answers small ones and /health meanwhile", async () => {
    const { task, release, running } = held();
    const { server, url } = await start_app({ max_pixels: 2_000_000 }, { embed: task });
    const large = large_image(100);
    const post = (body: Uint8Array<ArrayBuffer>) => fetch(`${url}/embed`, { method: "POST", body });
    const waiting = Array.from({ length: 8 }, () => post(new Uint8Array(large)));
    while (running() === 0) await turn();
    for (let i = 0; i < 10; i++) expect((await post(new Uint8Array(BAG))).status).toBe(200);
    expect((await fetch(`${url}/health`)).status).toBe(200);
    // One of two workers, whatever the number of clients.
    expect(running()).toBe(1);
    for (let i = 0; i < 8; i++) {
      while (running() === 0) await turn();
      release();
      await turn();
    }
    const answers = await Promise.all(waiting);
    expect(await Promise.all(answers.map((answer) => answer.json()))).toEqual(
      Array(8).fill({ embedding: [100, 100] }),
    );
    await server.close(0);
  });

  test("large bodies that wait for memory don't hold up small ones", async () => {
    const { task, release, running } = held();
    // A quarter of the memory is for bodies, a quarter of that for small ones.
    const limits = { max_pixels: 2_000_000, max_bytes: 4_000_000, max_memory: 48_000_000 };
    const { server, url } = await start_app(limits, { embed: task });
    const post = (body: Uint8Array<ArrayBuffer>) => fetch(`${url}/embed`, { method: "POST", body });
    const waiting = Array.from({ length: 4 }, () => post(new Uint8Array(large_image(800))));
    while (running() === 0) await turn();
    for (let i = 0; i < 10; i++) expect((await post(new Uint8Array(BAG))).status).toBe(200);
    for (let i = 0; i < 4; i++) {
      while (running() === 0) await turn();
      release();
      await turn();
    }
    expect((await Promise.all(waiting)).map(({ status }) => status)).toEqual([200, 200, 200, 200]);
    await server.close(0);
  });
});
