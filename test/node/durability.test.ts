import { AsyncLocalStorage } from "node:async_hooks";
import { copyFile, mkdtemp, rm as remove } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import type { FormatName } from "../../ts/cli/batch/formats.ts";
import { run_to_file, type Task } from "../../ts/cli/batch/job.ts";
import { with_lock } from "../../ts/files/lock.ts";
import { env, VitMsnError } from "../../ts/index.ts";
import { save_files } from "../../ts/loading/save.node.ts";
import { OLD_WEIGHTS } from "../../ts/model/save_model.ts";
import { open_output_folder } from "../../ts/training/folders/folders.node.ts";
import { root } from "../support/cli.ts";
import { type Fault, FaultyDisk, Killed, LOSSES, type Loss, mount } from "../support/faulty_disk.ts";

// What is written survives kills, full and failing disks, torn writes and power cuts: each run is broken off at every single
// call of the file system, and the same command is run again.

vi.mock("../../ts/files/disk.ts", async () => (await import("../support/faulty_disk.ts")).mount_point);

/** Which process the code under way belongs to, and which of them are gone. */
const processes = vi.hoisted(() => ({
  current: 1,
  own: undefined as AsyncLocalStorage<number> | undefined,
  gone: new Set<number>(),
  /** On other machines, so that it is unknown whether they are gone. */
  far: new Set<number>(),
}));
vi.mock("../../ts/files/owner.ts", async (original) => ({
  ...(await original<object>()),
  this_process: () => ({
    pid: processes.own?.getStore() ?? processes.current,
    host: "here",
    place: "this",
    started: "1",
  }),
  state_of: ({ pid }: { pid: number }) => {
    if (processes.far.has(pid)) return "unknown";
    return processes.gone.has(pid) ? "gone" : "alive";
  },
}));

/** Another process runs from now on; the one before has ended, however it did. */
function next_process(): void {
  processes.gone.add(processes.current++);
}

let folder: string;
let image_paths: string[];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-durability-"));
  const names = ["8-bag.png", "missing.png", "9-ankle-boot.png"];
  image_paths = names.map((name) => join(folder, name));
  for (const name of ["8-bag.png", "9-ankle-boot.png"])
    await copyFile(join(root, "models/fashion/pictures", name), join(folder, name));
});
afterAll(() => remove(folder, { recursive: true, force: true }));
beforeEach(() => {
  processes.own = undefined;
  processes.gone.clear();
  processes.far.clear();
  env.warn = () => {};
  // Images that fail are reported, thousands of times here.
  vi.spyOn(process.stderr, "write").mockReturnValue(true);
});

const task: Task = {
  shape: { width: 3, has_labels: false },
  settings: {},
  prepare: async (image) => image,
  compute: async (images) =>
    images.map(({ data }) => ({
      values: [0, 1, 2].map((i) =>
        Array.from(data).reduce((sum, value, at) => sum + value * (at % (i + 2)), 0),
      ),
    })),
  is_alive: () => true,
  dispose: async () => {},
};

const ENDINGS = ["", ".errors.jsonl", ".images.jsonl"];

/** What a run leaves for its user, and its exit code. */
async function embed(disk: FaultyDisk, format: FormatName) {
  mount(disk);
  const output = `/out/rows.${format}`;
  const code = await run_to_file(
    async () => task,
    {
      sources: { paths: image_paths, lists: [], download: { retries: 0, timeout_ms: 1000 } },
      shard: { index: 0, count: 1 },
      batch_size: 1,
      stop_on_error: false,
      quiet: true,
      signal: new AbortController().signal,
    },
    { output, format, restart: false, save_every: 0, identity: { command: "embed" } },
  );
  const files = disk.files();
  const left = ENDINGS.map((ending) => Buffer.from(files.get(`${output}${ending}`) ?? []).toString("latin1"));
  const others = [...files.keys()].filter((path) => /tmp|lock|part/.test(path));
  return { code, left, others };
}

type Embedded = Awaited<ReturnType<typeof embed>>;

/** What the run came to, or the error that it ended with. */
function outcome(run: Promise<Embedded>): Promise<Embedded | VitMsnError | Killed> {
  return run.catch((error: unknown) => {
    if (error instanceof VitMsnError || error instanceof Killed) return error;
    throw new Error("a fault that isn't ours", { cause: error });
  });
}

/** Breaks the run off at every call, each time on a copy of the disk, and runs it again. */
async function at_every_call(
  begin: FaultyDisk,
  format: FormatName,
  wanted: Embedded,
  faults: readonly Omit<Fault, "at">[],
  losses: readonly Loss[],
): Promise<void> {
  const undisturbed = begin.copy();
  await embed(undisturbed, format);
  expect(undisturbed.calls).toBeGreaterThan(50);
  for (let at = 1; at <= undisturbed.calls; at++) {
    for (const fault of faults) {
      const disk = begin.copy();
      disk.fault = { ...fault, at };
      const first = await outcome(embed(disk, format));
      const where = `call ${at}, ${fault.what}`;
      if (first instanceof VitMsnError) expect(first.code, where).toBe("IO");
      else if (!(first instanceof Killed)) expect(first, where).toEqual({ ...wanted, others: first.others });
      next_process();
      for (const loss of fault.what === "kill" ? losses : (["nothing"] as const)) {
        const left = disk.copy();
        left.lose(loss);
        expect(await embed(left, format), `${where}, ${loss} lost`).toEqual(wanted);
        next_process();
      }
    }
  }
}

const KILL = { what: "kill" } as const;
const ERRORS = [{ what: "EIO" }, { what: "ENOSPC", stays: true }, { what: "EDQUOT" }] as const;
const ALL_LOSSES = Object.keys(LOSSES) as Loss[];

describe("embed, broken off at every call of the file system", () => {
  test.each([
    ["jsonl", [KILL, ...ERRORS], ALL_LOSSES],
    ["parquet", [KILL, ERRORS[1]], ["everything", "first_name"]],
    ["npy", [KILL, ERRORS[0]], ["everything", "some_bytes"]],
    ["npz", [KILL, ERRORS[1]], ["nothing", "bytes"]],
  ] as const)("%s is what an undisturbed run writes", async (format, faults, losses) => {
    const wanted = await embed(new FaultyDisk(), format);
    next_process();
    expect([wanted.code, wanted.others]).toEqual([3, []]);
    for (const loss of losses) {
      const done = new FaultyDisk();
      await embed(done, format);
      next_process();
      const before = done.copy().files();
      done.lose(loss);
      const output = `/out/rows.${format}`;
      for (const path of [output, `${output}.journal.json`])
        expect(done.files().get(path), `${path}, ${loss} lost`).toEqual(before.get(path));
    }
    await at_every_call(new FaultyDisk(), format, wanted, faults, losses);
  });

  test.each(["jsonl", "parquet"] as const)("%s: so is one whose failures are tried again", async (format) => {
    const begun = new FaultyDisk();
    expect((await embed(begun, format)).code).toBe(3);
    next_process();
    begun.calls = 0;
    await copyFile(image_paths[0] as string, image_paths[1] as string);
    try {
      const wanted = await embed(new FaultyDisk(), format);
      next_process();
      expect([wanted.code, wanted.left[1]]).toEqual([0, ""]);
      await at_every_call(begun, format, wanted, [KILL, ERRORS[0]], ["nothing", "everything"]);
    } finally {
      await remove(image_paths[1] as string);
    }
  });

  test("short writes lose nothing", async () => {
    for (const format of ["jsonl", "parquet", "npy", "npz"] as const) {
      const wanted = await embed(new FaultyDisk(), format);
      next_process();
      const disk = new FaultyDisk();
      disk.writes_are_short = true;
      expect(await embed(disk, format)).toEqual(wanted);
      next_process();
    }
  });
});

describe("checkpoints, broken off at every call of the file system", () => {
  const FILES = ["config.json", "model.safetensors", "trainer_state.json"];
  const content = (step: number, name: string) => `${name} of step ${step}, which is longer than a byte\n`;

  /** As the trainers do. Gives the step whose checkpoint was the last to be written. */
  async function train(disk: FaultyDisk): Promise<number> {
    mount(disk);
    const folder = await open_output_folder("/out/run");
    const write = (step: number) =>
      folder.write(`checkpoint-${step}`, async (directory) => {
        for (const name of FILES) await save_files(directory, { [name]: content(step, name) });
      });
    await write(1);
    await write(2);
    await folder.remove("checkpoint-1");
    await write(2);
    return 2;
  }

  /** Every checkpoint is whole, whatever else is there. */
  function expect_whole(disk: FaultyDisk, where: string): number[] {
    const files = disk.files();
    const steps = [...files.keys()].flatMap((path) => /^\/out\/run\/checkpoint-(\d)\//.exec(path)?.[1] ?? []);
    const found = [...new Set(steps.map(Number))];
    for (const step of found)
      for (const name of FILES) {
        const bytes = files.get(`/out/run/checkpoint-${step}/${name}`) ?? [];
        expect(Buffer.from(bytes).toString(), `${where}, ${name}`).toBe(content(step, name));
      }
    return found;
  }

  test("what is called a checkpoint is one", async () => {
    const undisturbed = new FaultyDisk();
    expect(await train(undisturbed)).toBe(2);
    expect(expect_whole(undisturbed, "undisturbed")).toEqual([2]);
    for (const loss of ALL_LOSSES) {
      const left = undisturbed.copy();
      left.lose(loss);
      expect(expect_whole(left, `afterwards, ${loss} lost`)).toContain(2);
    }
    for (let at = 1; at <= undisturbed.calls; at++) {
      for (const fault of [KILL, ...ERRORS]) {
        const disk = new FaultyDisk();
        disk.fault = { ...fault, at };
        const first = await train(disk).catch((error: unknown) => error);
        if (!(first instanceof Killed) && first !== 2) expect(first).toMatchObject({ code: "IO" });
        for (const loss of ALL_LOSSES) {
          const left = disk.copy();
          left.lose(loss);
          expect_whole(left, `call ${at}, ${fault.what}, ${loss} lost`);
          await train(left);
          expect(expect_whole(left, "again")).toEqual([2]);
          expect([...left.files().keys()].filter((path) => /tmp|incomplete/.test(path))).toEqual([]);
        }
      }
    }
  });

  test("a model saved over another is the old or the new one, config and shards included", async () => {
    const [config, weights] = ["/out/model/config.json", "/out/model/model.safetensors"];
    const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    const old_weights = ["model.safetensors.index.json", ...shards].map((name) => `/out/model/${name}`);
    const others = ["/out/model/model-card.txt", "/out/model/my-model-00001-of-00002.safetensors"];
    const save = async (disk: FaultyDisk) => {
      mount(disk);
      const files = { "model.safetensors": "new weights", "config.json": "new config" };
      await save_files("/out/model", files, {}, OLD_WEIGHTS);
    };
    const older = new FaultyDisk();
    mount(older);
    for (const path of [...old_weights, ...others, config])
      await save_files("/out/model", { [path.split("/").at(-1) as string]: "old" });
    older.calls = 0;
    const whole = older.copy();
    await save(whole);
    expect([...whole.files().keys()].sort()).toEqual([config, weights, ...others].sort());
    for (let at = 1; at <= whole.calls; at++)
      for (const loss of ALL_LOSSES) {
        const disk = older.copy();
        disk.fault = { ...KILL, at };
        await expect(save(disk)).rejects.toThrow(Killed);
        disk.lose(loss);
        const files = new Map(
          [...disk.files()].map(([path, bytes]) => [path, Buffer.from(bytes).toString()]),
        );
        const where = `call ${at}, ${loss} lost`;
        if (files.get(config) === "new config") expect(files.get(weights), where).toBe("new weights");
        else expect(files.get(config), where).toBe("old");
        if (files.get(config) === "old")
          for (const path of old_weights) expect(files.get(path), where).toBe("old");
        for (const path of others) expect(files.get(path), where).toBe("old");
      }
  });

  test("a saved file has either its old or its new content", async () => {
    const save = async (disk: FaultyDisk, text: string) => {
      mount(disk);
      await save_files("/out/model", { "config.json": text });
    };
    const saved = new FaultyDisk();
    await save(saved, "the first");
    saved.calls = 0;
    const whole = saved.copy();
    await save(whole, "the second one");
    for (let at = 1; at <= whole.calls; at++)
      for (const loss of ALL_LOSSES) {
        const disk = saved.copy();
        disk.fault = { ...KILL, at };
        await expect(save(disk, "the second one")).rejects.toThrow(Killed);
        disk.lose(loss);
        const bytes = disk.files().get("/out/model/config.json") ?? [];
        expect(["the first", "the second one"], `call ${at}, ${loss} lost`).toContain(
          Buffer.from(bytes).toString(),
        );
      }
  });
});

describe("the lock of an output", () => {
  const LOCK = "/out/rows.lock";
  /** The file system as a run that was killed while it held the lock leaves it. */
  async function abandoned(pid = 99): Promise<FaultyDisk> {
    const disk = new FaultyDisk();
    mount(disk);
    await disk.mkdir("/out");
    processes.current = pid;
    disk.fault = { at: 1_000_000, what: "kill" };
    await with_lock(LOCK, { what: "rows" }, async () => {
      disk.fault = { at: 1, what: "kill" };
    });
    disk.lose("nothing");
    processes.gone.add(pid);
    expect([...disk.files().keys()]).toEqual([LOCK]);
    return disk;
  }

  /** Processes whose calls of the file system come in an order that `random` decides; some of them are killed on the way. */
  async function contend(disk: FaultyDisk, random: () => number, kill_one_in: number) {
    processes.own = new AsyncLocalStorage();
    const { own, gone } = processes;
    const waiting: { pid: number; go: () => void }[] = [];
    disk.turn = () => new Promise((go) => waiting.push({ pid: own.getStore() ?? 0, go }));
    const inside = new Set<number>();
    const ends = new Map<number, string>();
    let most = 0;
    const pids = [1, 2, 3, 4];
    for (const pid of pids)
      own
        .run(pid, () =>
          with_lock(LOCK, { what: "rows" }, async (lock) => {
            inside.add(pid);
            most = Math.max(most, inside.size);
            for (let steps = Math.floor(random() * 4); steps > 0; steps--) await lock.check();
            inside.delete(pid);
          }),
        )
        .then(
          () => ends.set(pid, "held"),
          (error: VitMsnError) => ends.set(pid, error.message),
        );
    while (ends.size < pids.length) {
      await new Promise((resolve) => setImmediate(resolve));
      const [next] = waiting.splice(Math.floor(random() * waiting.length), 1);
      if (next === undefined || ends.has(next.pid)) next?.go();
      else if (random() * kill_one_in < 1) {
        gone.add(next.pid);
        inside.delete(next.pid);
        ends.set(next.pid, "killed");
        // It never continues.
        for (let i = waiting.length - 1; i >= 0; i--) if (waiting[i]?.pid === next.pid) waiting.splice(i, 1);
      } else next.go();
    }
    disk.turn = undefined;
    processes.own = undefined;
    return { most, ends: [...ends.values()] };
  }

  function random_numbers(seed: number): () => number {
    let state = seed;
    return () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
  }

  test.each([
    ["of a run that was killed", true, true],
    ["of nobody", false, true],
    ["where there are no hard links", true, false],
  ])(
    "one of several processes takes the lock %s, in whatever order they run and whichever is killed",
    async (_, is_left, has_links) => {
      for (let seed = 1; seed <= 100; seed++) {
        processes.gone.clear();
        let disk = new FaultyDisk();
        if (is_left) disk = await abandoned();
        else await disk.mkdir("/out");
        mount(disk);
        disk.has_links = has_links;
        const { most, ends } = await contend(
          disk,
          random_numbers(seed),
          seed % 3 === 0 && has_links ? 40 : 1e9,
        );
        expect(most, `seed ${seed}`).toBeLessThanOrEqual(1);
        expect(
          ends.some((end) => end === "held" || end === "killed"),
          `seed ${seed}`,
        ).toBe(true);
        for (const end of ends)
          expect(end, `seed ${seed}`).toMatch(
            /^held$|^killed$|being written by another process, process \d|is a lock file without a valid owner/,
          );
        // Another one comes, and leaves nothing of them.
        processes.current = 50;
        await with_lock(LOCK, { what: "rows" }, async () => {});
        expect([...disk.files().keys()], `seed ${seed}`).toEqual([]);
      }
    },
  );

  test("an owner on another machine keeps the lock while it shows that it lives, and loses it when it is silent", async () => {
    vi.useFakeTimers();
    try {
      const disk = new FaultyDisk();
      await disk.mkdir("/out");
      mount(disk);
      processes.own = new AsyncLocalStorage();
      const { own } = processes;
      processes.far.add(1);
      let end = () => {};
      let held: { check(): Promise<void> } | undefined;
      const first = own.run(1, () =>
        with_lock(LOCK, { what: "rows" }, (lock) => {
          held = lock;
          return new Promise<void>((resolve) => {
            end = resolve;
          });
        }),
      );
      await vi.advanceTimersByTimeAsync(1000);
      const take = () => own.run(2, () => with_lock(LOCK, { what: "rows" }, async () => "taken"));
      const refused = take().catch((error: VitMsnError) => error.message);
      await vi.advanceTimersByTimeAsync(20_000);
      expect(await refused).toMatch(
        /being written by another process, process 1 on here.*delete \/out\/rows\.lock/,
      );
      // As if it stood still: no beat comes any more.
      const beats = vi.spyOn(globalThis, "clearInterval");
      vi.clearAllTimers();
      const warned: string[] = [];
      env.warn = (message) => warned.push(message);
      const taken = take();
      await vi.advanceTimersByTimeAsync(70_000);
      expect(await taken).toBe("taken");
      expect(warned[0]).toMatch(/waiting up to 60 s.*delete \/out\/rows\.lock/);
      await expect(held?.check()).rejects.toMatchObject({
        code: "IO",
        message: expect.stringContaining("no longer locked"),
      });
      end();
      await first;
      expect(beats).toHaveBeenCalled();
    } finally {
      vi.useRealTimers();
    }
  });

  test("a lock file without an owner is left to the user", async () => {
    const disk = new FaultyDisk();
    mount(disk);
    await disk.mkdir("/out");
    for (const text of [
      "",
      "null",
      "{}",
      '{"id":"../../evil","pid":1,"host":"h","since":"","place":null,"started":null}',
    ]) {
      const file = await disk.open(LOCK, "w");
      await file.write(Buffer.from(text), 0, text.length, 0);
      await expect(with_lock(LOCK, { what: "rows" }, async () => {})).rejects.toMatchObject({
        code: "IO",
        message: expect.stringMatching(/\/out\/rows\.lock .*delete it/),
      });
    }
  });
});
