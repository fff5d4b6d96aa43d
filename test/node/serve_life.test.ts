import { once } from "node:events";
import { connect } from "node:net";
import { afterEach, describe, expect, test, vi } from "vitest";
import { LastingTask } from "../../ts/cli/serve/lasting_task.ts";
import { EnginePool, type ServedTask } from "../../ts/cli/serve/served_task.ts";
import { env, VitMsnError } from "../../ts/index.ts";
import {
  BAG,
  classes,
  exchange,
  RawClient,
  read_here,
  request_of,
  sizes,
  start_app,
} from "../support/http_app.ts";

// Lifetimes in `vit-msn serve`: clients that leave, requests that never end, engines that die, shutdown.

const GET = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
const png = { method: "POST", body: BAG, headers: { "content-type": "image/png" } };

/** A wait that ends with open(). */
function gate() {
  let open = () => {};
  let enter = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const entered = new Promise<void>((resolve) => {
    enter = resolve;
  });
  const wait = () => {
    enter();
    return opened;
  };
  return { open, entered, wait };
}

function gated(task: ServedTask) {
  const { open, entered, wait } = gate();
  const compute: ServedTask["compute"] = async (...given) => wait().then(() => task.compute(...given));
  return { open, entered, task: { ...task, compute } };
}

const in_progress = async (url: string) =>
  Number(/vit_msn_requests_in_progress (\d+)/.exec(await (await fetch(`${url}/metrics`)).text())?.[1]);

async function until(is_so: () => Promise<boolean>): Promise<void> {
  while (!(await is_so())) await new Promise((resolve) => setImmediate(resolve));
}

const TIMED_OUT = { status: 504, body: expect.stringContaining('"code":"TIMEOUT"') };

/** Time passes in `body` only where it advances it. */
async function with_stopped_clock<T>(body: () => Promise<T>): Promise<T> {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    return await body();
  } finally {
    vi.useRealTimers();
  }
}

const code_of = async (response: Response) => [response.status, (await response.json()).error.code];

afterEach(() => {
  env.decode = undefined;
});

describe("clients that leave", () => {
  test.each([
    ["GET", 10],
    ["GET", 5000],
    ["POST", 10],
    ["POST", 500],
  ])("before their pipelined %s requests are answered leave nothing behind (%i)", async (method, count) => {
    const { task, entered, open } = gated(sizes);
    const { server, port, url } = await start_app({}, { embed: task });
    const one = request_of("/embed", BAG);
    const client = new RawClient(port).write(one, ...Array(count).fill(method === "GET" ? GET : one));
    await entered;
    client.socket.resetAndDestroy();
    // The end of a connection that isn't read any further is noticed when it is written to.
    if (count > 10) open();
    await until(async () => (await in_progress(url)) === 0);
    await server.close(2 ** 30); // waits for every request that is still counted
    open();
  });

  test("in the middle of a body free their place in the queue", async () => {
    const { server, port, url } = await start_app({ max_queue: 1 });
    const client = new RawClient(port).write(request_of("/embed", BAG).subarray(0, -1));
    await until(async () => (await in_progress(url)) === 1);
    client.socket.destroy();
    await until(async () => (await in_progress(url)) === 0);
    expect((await fetch(`${url}/embed`, png)).status).toBe(200);
    await server.close(0);
  });

  test("only after reading late get all answers", async () => {
    // More than a connection holds by itself.
    const { server, port } = await start_app({ about: { much: "x".repeat(100_000) } });
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    await once(socket, "connect");
    socket.pause();
    const count = 200;
    socket.end(GET.repeat(count));
    await once(socket, "finish");
    let text = "";
    for await (const chunk of socket) text += chunk;
    expect(text.match(/HTTP\/1\.1 200/g)).toHaveLength(count);
    await server.close(0);
  });
});

describe("what takes too long", () => {
  test("a body that doesn't arrive", async () => {
    const { server, port } = await start_app({ timeout_ms: 20 });
    const client = new RawClient(port).write(request_of("/embed", BAG).subarray(0, -1));
    expect((await client.answers(1))[0]?.status).toBe(408);
    await client.all();
    await server.close(0);
  });

  test("an answer", async () => {
    const { task, entered, open } = gated(sizes);
    const { server, port } = await start_app({ timeout_ms: 60_000 }, { embed: task });
    const client = await with_stopped_clock(async () => {
      const waiting = new RawClient(port).write(request_of("/embed", BAG));
      let computes = false;
      entered.then(() => {
        computes = true;
      });
      await until(async () => {
        vi.advanceTimersByTime(0); // a batch is computed in the next turn
        return computes;
      });
      vi.advanceTimersByTime(60_000);
      return waiting;
    });
    expect((await client.answers(1))[0]).toMatchObject(TIMED_OUT);
    open();
    await server.close(0);
  });

  test("decoding: the client is answered in time, and the limit of decoders still holds", async () => {
    const { open, wait } = gate();
    let decoding = 0;
    let most = 0;
    env.decode = async () => {
      most = Math.max(most, ++decoding);
      await wait();
      decoding--;
      return { data: new Uint8ClampedArray(4), width: 1, height: 1 };
    };
    const { server, port, url } = await start_app({ timeout_ms: 60_000, max_batch: 1 });
    const clients = await with_stopped_clock(async () => {
      const waiting = Array.from({ length: 6 }, () => new RawClient(port).write(request_of("/embed", BAG)));
      await until(async () => (await in_progress(url)) === 6);
      vi.advanceTimersByTime(60_000);
      return waiting;
    });
    for (const client of clients) expect((await client.answers(1))[0]).toMatchObject(TIMED_OUT);
    expect(most).toBeLessThanOrEqual(2);
    expect(await in_progress(url)).toBe(0);
    open();
    await until(async () => (await fetch(`${url}/embed`, png)).status === 200);
    await server.close(0);
  });
});

describe("engines that die", () => {
  /** A task whose engine a test may end; `loads` of them can be had. */
  function mortal(loads: number) {
    const alive: { is_alive: boolean }[] = [];
    const log: string[] = [];
    const load = async () => {
      if (alive.length >= loads) throw new VitMsnError("NOT_FOUND", "There is no model any more.");
      const engine = { is_alive: true };
      alive.push(engine);
      return {
        is_alive: () => engine.is_alive,
        compute: async () => {
          if (!engine.is_alive) throw new VitMsnError("ENGINE_DEAD", "It died.");
          return [{ values: [alive.length] }];
        },
        dispose: async () => {},
      };
    };
    const kill = () => {
      for (const engine of alive) engine.is_alive = false;
    };
    const waits: number[] = [];
    const released: (() => void)[] = [];
    const wait = (ms: number) => {
      waits.push(ms);
      return new Promise<void>((resolve) => released.push(resolve));
    };
    const task = async () => {
      const engine = new LastingTask(await load(), { load, log: (line) => log.push(line), wait });
      return new EnginePool([engine], read_here);
    };
    /** Lets the next attempt begin. */
    const release = () => released.shift()?.();
    return { task, kill, log, waits, release };
  }

  test("are noticed by /health without another request, and replaced", async () => {
    const { task, kill, log } = mortal(9);
    const { server, url } = await start_app({}, { embed: await task() });
    expect(await (await fetch(`${url}/embed`, png)).json()).toEqual({ embedding: [1] });
    kill();
    // A restart wouldn't be faster than the reload: the process is healthy, but not ready.
    const health = await fetch(`${url}/health`);
    expect([health.status, await health.json()]).toEqual([200, { status: "loading" }]);
    await until(async () => (await fetch(`${url}/ready`)).status === 200);
    expect(await (await fetch(`${url}/embed`, png)).json()).toEqual({ embedding: [2] });
    kill();
    expect(await (await fetch(`${url}/embed`, png)).json()).toEqual({ embedding: [3] }); // a request waits for it
    expect(log).toHaveLength(2);
    await server.close(0);
  });

  test.each([
    ["that die again before they answer", 9],
    ["that can't be loaded again", 1],
  ])("%s are replaced after ever longer times, and meanwhile requests get 503", async (_name, loads) => {
    const { task, kill, waits, release } = mortal(loads);
    const { server, url } = await start_app({}, { embed: await task() });
    const status = async () => {
      const answer = await fetch(`${url}/health`);
      return `${answer.status} ${(await answer.json()).status}`;
    };
    kill();
    for (const count of [1, 2, 3]) {
      await until(async () => {
        if (waits.length < count && (await status()) === "200 ok") kill();
        return waits.length === count && (await status()) === "503 dead";
      });
      const refused = await fetch(`${url}/embed`, png);
      expect(refused.headers.get("retry-after")).toBe("1");
      expect(await code_of(refused)).toEqual([503, "ENGINE_DEAD"]);
      release();
    }
    expect(waits.slice(0, 3)).toEqual([1000, 2000, 4000]);
    await server.close(0);
  });

  test("an answer ends the waiting: the next death is repaired at once", async () => {
    const { task, kill, waits, release } = mortal(9);
    const { server, url } = await start_app({}, { embed: await task() });
    const is_ready = async () => (await fetch(`${url}/ready`)).status === 200;
    kill();
    await until(is_ready);
    kill();
    await until(async () => !(await is_ready()) && waits.length === 1);
    release();
    await until(is_ready);
    await (await fetch(`${url}/embed`, png)).json();
    kill();
    expect((await fetch(`${url}/embed`, png)).status).toBe(200);
    expect(waits).toEqual([1000]);
    await server.close(0);
  });
});

test("a fault of the server is logged once, on one line, and its details don't reach the client", async () => {
  const failing: ServedTask = {
    state: "ok",
    engines: 1,
    prepare: read_here,
    compute: async () => {
      throw new TypeError("secret\n\u001b[31mof two lines");
    },
  };
  const { server, url, log } = await start_app({}, { embed: failing });
  for (let i = 0; i < 3; i++) {
    const text = await (await fetch(`${url}/embed`, png)).text();
    expect(text).toContain("INTERNAL");
    expect(text).not.toContain("secret");
  }
  expect(log).toEqual([
    expect.stringMatching(/^POST \/embed failed: TypeError: secret [^\n]*of two lines \(.*serve_life.*\)$/),
  ]);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what mustn't be there
  expect(log[0]).not.toMatch(/[\u0000-\u001f]/);
  await server.close(0);
});

describe("shutdown", () => {
  test("new connections are answered while it drains, and then closed", async () => {
    const { app, server, port, url } = await start_app();
    expect((await fetch(`${url}/ready`)).status).toBe(200);
    app.stop();
    server.end_connections();
    for (const [path, status] of [
      ["/ready", 503],
      ["/health", 200],
    ]) {
      const response = await fetch(`${url}${path}`);
      expect([response.status, await response.json()]).toEqual([status, { status: "stopping" }]);
    }
    const [answer] = await new RawClient(port).write(request_of("/classify", BAG)).all();
    expect([answer?.status, answer?.headers.connection]).toEqual([200, "close"]);
    // All requests of a connection that were received are answered, the last one ends it.
    const many = await exchange(port, Buffer.concat(Array(20).fill(request_of("/embed", BAG))));
    expect(many.map(({ status }) => status)).toEqual(Array(20).fill(200));
    await server.close(2 ** 30);
    await expect(fetch(`${url}/health`)).rejects.toThrow();
  });

  test("connections are closed after an answer where keep_alive_ms is 0", async () => {
    const { server, port } = await start_app({ keep_alive_ms: 0 });
    const [answer] = await new RawClient(port).write(request_of("/embed", BAG)).all();
    expect([answer?.status, answer?.headers.connection]).toEqual([200, "close"]);
    await server.close(2 ** 30);
  });

  test("accepted requests are answered, later ones are refused", async () => {
    const { task, entered, open } = gated(classes);
    const { app, server, port } = await start_app({}, { classify: task });
    const one = request_of("/classify", BAG);
    const accepted = new RawClient(port).write(one, one);
    await entered;
    app.stop();
    app.close();
    const closed = server.close(2 ** 30);
    open();
    expect((await accepted.all()).map(({ status }) => status)).toEqual([200, 503]);
    await closed;
  });

  test("connections that don't end in time are closed", async () => {
    const { task, entered, open } = gated(classes);
    const { server, port } = await start_app({}, { classify: task });
    const client = new RawClient(port).write(request_of("/classify", BAG));
    const silent = new RawClient(port);
    await entered;
    await server.close(1);
    expect([await client.all(), await silent.all()]).toEqual([[], []]);
    open();
  });
});
