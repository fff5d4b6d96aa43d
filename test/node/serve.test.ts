import { type ChildProcess, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type CliOptions, type Finished, root, start, vit_msn } from "../support/cli.ts";

// `vit-msn serve`: the built command line as a process, asked over HTTP.

const BAG = join(root, "models/fashion/pictures/8-bag.png");
const PNG = { "content-type": "image/png" };

interface Served {
  url: string;
  port: number;
  process: ChildProcess & { finished: Promise<Finished> };
  /** What it has written to standard error so far. */
  printed(): string;
}

const running = new Set<Served>();
let bag: Uint8Array<ArrayBuffer>;
let server: Served;

beforeAll(async () => {
  bag = await read_bytes(BAG);
  server = await serve(["--max-wait", "0.05"]);
});
afterAll(async () => {
  for (const served of running) served.process.kill("SIGKILL");
  await Promise.all([...running].map((served) => served.process.finished));
});

async function read_bytes(path: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await readFile(path));
}

/** Starts a server at a free port and waits until it listens. */
async function serve(args: string[], options: CliOptions = {}): Promise<Served> {
  const child = start(["serve", "--port", "0", "--drain", "0", ...args], options);
  let printed = "";
  const port = await new Promise<number>((resolve, reject) => {
    child.stderr?.on("data", (text: Buffer) => {
      printed += text.toString();
      const listening = /listening at http:\/\/127\.0\.0\.1:(\d+)/.exec(printed);
      if (listening) resolve(Number(listening[1]));
    });
    child.finished.then(({ stderr }) => reject(new Error(stderr)));
  });
  const served = { url: `http://127.0.0.1:${port}`, port, process: child, printed: () => printed };
  running.add(served);
  return served;
}

async function stop(served: Served, signal: NodeJS.Signals = "SIGTERM"): Promise<Finished> {
  served.process.kill(signal);
  running.delete(served);
  return served.process.finished;
}

const post = (path: string, body: BodyInit, headers: Record<string, string> = PNG, at = server) =>
  fetch(`${at.url}${path}`, { method: "POST", body, headers });

async function refusal(response: Response): Promise<[number, string]> {
  const { error } = await response.json();
  expect(error.message).toMatch(/^\S+ .*\.$/);
  return [response.status, error.code];
}

async function metric(name: string, at = server): Promise<number> {
  const text = await (await fetch(`${at.url}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${name} `));
  return Number(line?.split(" ")[1] ?? 0);
}

async function until(is_so: () => Promise<boolean>): Promise<void> {
  while (!(await is_so())) await new Promise((resolve) => setTimeout(resolve, 20));
}

/** Sends headers that promise a body, and only its first byte. */
function dawdle(at: Served, path = "/embed") {
  const asked = request({
    ...{ port: at.port, host: "127.0.0.1", path, method: "POST" },
    headers: { ...PNG, "content-length": bag.length },
  });
  asked.on("error", () => {});
  asked.write(bag.subarray(0, 1));
  const answer = once(asked, "response").then(([response]) => response as IncomingMessage);
  answer.catch(() => {});
  return { asked, answer, finish: () => asked.end(bag.subarray(1)) };
}

describe("answers", () => {
  test("classes and embeddings are those of the command line", async () => {
    const [classified, embedded] = await Promise.all([
      vit_msn(["classify", BAG, "--json", "--top-k", "3"]),
      vit_msn(["embed", BAG]),
    ]);
    const { results } = JSON.parse(classified.stdout);
    expect(await (await post("/classify?top_k=3", bag)).json()).toEqual({ results });
    const { embedding } = JSON.parse(embedded.stdout);
    expect(await (await post("/embed", bag, {})).json()).toEqual({ embedding });
    const by_curl = { "content-type": "application/x-www-form-urlencoded" };
    expect(await (await post("/embed", bag, by_curl)).json()).toEqual({ embedding });
    const form = new FormData();
    form.set("photo", new Blob([bag]), "bag.png");
    const by_form = await fetch(`${server.url}/classify`, { method: "POST", body: form });
    expect((await by_form.json()).results).toHaveLength(5);
  });

  test("requests that come together are computed together, and each gets its own answer", async () => {
    const names = ["0-t-shirt-top", "1-trouser", "8-bag", "9-ankle-boot"];
    const bodies = await Promise.all(
      names.map((name) => read_bytes(join(root, `models/fashion/pictures/${name}.png`))),
    );
    const before = {
      batches: await metric('vit_msn_batch_size_count{task="classify"}'),
      images: await metric('vit_msn_batch_size_sum{task="classify"}'),
    };
    const broken = post("/classify", "not an image");
    const answers = await Promise.all(bodies.map((body) => post("/classify?top_k=1", body)));
    const labels = await Promise.all(answers.map(async (answer) => (await answer.json()).results[0].label));
    expect(labels).toEqual(["T-shirt/top", "Trouser", "Bag", "Ankle boot"]);
    expect(await refusal(await broken)).toEqual([400, "INVALID_IMAGE"]);
    expect((await metric('vit_msn_batch_size_sum{task="classify"}')) - before.images).toBe(4);
    expect((await metric('vit_msn_batch_size_count{task="classify"}')) - before.batches).toBeLessThan(4);
  });

  test("/health reports what is served, /metrics uses Prometheus' format", async () => {
    const health = await fetch(`${server.url}/health`);
    expect([health.status, await health.json()]).toEqual([
      200,
      expect.objectContaining({ status: "ok", dtype: "float32", tasks: ["classify", "embed"] }),
    ]);
    const metrics = await fetch(`${server.url}/metrics`);
    expect(metrics.headers.get("content-type")).toMatch(/^text\/plain; version=0\.0\.4/);
    const text = await metrics.text();
    for (const name of [
      "vit_msn_request_seconds",
      "vit_msn_compute_seconds",
      "process_resident_memory_bytes",
    ])
      expect(text).toContain(`# TYPE ${name}`);
  });

  test("a backbone's checkpoint is served for embeddings alone", async () => {
    const backbone = await serve(["--model", "test/fixtures/backbone"]);
    expect((await (await fetch(`${backbone.url}/health`)).json()).tasks).toEqual(["embed"]);
    expect(await refusal(await post("/classify", bag, PNG, backbone))).toEqual([404, "NOT_FOUND"]);
    expect((await post("/embed", bag, PNG, backbone)).status).toBe(200);
    expect((await stop(backbone)).code).toBe(0);
  });
});

describe("refusals", () => {
  test.each<[string, string, BodyInit, Record<string, string>, number, string]>([
    ["not an image", "/classify", "<html>", PNG, 400, "INVALID_IMAGE"],
    ["an empty body", "/classify", "", PNG, 400, "INVALID_IMAGE"],
    ["an SVG drawing", "/classify", "<svg></svg>", { "content-type": "image/svg+xml" }, 415, "UNSUPPORTED"],
    ["text", "/classify", "hello", { "content-type": "text/plain" }, 415, "UNSUPPORTED_MEDIA_TYPE"],
    [
      "a broken form",
      "/embed",
      "x",
      { "content-type": "multipart/form-data; boundary=y" },
      400,
      "INVALID_ARGUMENT",
    ],
    ["top_k of 0", "/classify?top_k=0", "x", PNG, 400, "INVALID_ARGUMENT"],
    [
      "a URL, unless allowed",
      "/embed",
      '{"url":"http://127.0.0.1/"}',
      { "content-type": "application/json" },
      403,
      "ACCESS_DENIED",
    ],
    ["another route", "/paint", "x", PNG, 404, "NOT_FOUND"],
  ])("%s", async (_what, path, body, headers, status, code) => {
    expect(await refusal(await post(path, body, headers))).toEqual([status, code]);
  });

  test("other methods, and forms without one file", async () => {
    expect(await refusal(await fetch(`${server.url}/embed`))).toEqual([405, "METHOD_NOT_ALLOWED"]);
    const form = new FormData();
    form.set("name", "value");
    const response = await fetch(`${server.url}/embed`, { method: "POST", body: form });
    expect(await refusal(response)).toEqual([400, "INVALID_ARGUMENT"]);
  });

  test("a body, an image, a queue and a wait that are too long", async () => {
    const strict = await serve([
      ...["--max-body", "1", "--max-pixels", "700", "--max-queue", "2"],
      ...["--model", "test/fixtures/tiny"],
    ]);
    const large = Buffer.alloc(1_000_001);
    expect(await refusal(await post("/embed", large, PNG, strict))).toEqual([413, "PAYLOAD_TOO_LARGE"]);
    const stream = new Blob([large]).stream();
    const chunked = { method: "POST", body: stream, headers: PNG, duplex: "half" } as RequestInit;
    expect(await refusal(await fetch(`${strict.url}/embed`, chunked))).toEqual([413, "PAYLOAD_TOO_LARGE"]);
    expect(await refusal(await post("/embed", bag, PNG, strict))).toEqual([400, "INVALID_IMAGE"]);

    const slow = [dawdle(strict), dawdle(strict)];
    await until(async () => (await metric("vit_msn_requests_in_progress", strict)) === 2);
    const third = await post("/embed", bag, PNG, strict);
    expect(third.headers.get("retry-after")).toBe("1");
    expect(await refusal(third)).toEqual([429, "QUEUE_FULL"]);
    for (const { asked } of slow) asked.destroy();
    await until(async () => (await metric("vit_msn_requests_in_progress", strict)) === 0);
    const { code, stderr } = await stop(strict);
    expect([code, stderr.split("\n").length]).toEqual([0, 3]); // listening, stopping

    const hasty = await serve(["--timeout", "1", "--model", "test/fixtures/tiny"]);
    expect([408, 504]).toContain((await dawdle(hasty).answer).statusCode);
    await stop(hasty);
  });

  test("URLs only of allowed hosts, along redirects too", async () => {
    const secret = await listen((_, response) => response.end(bag));
    const host = await listen(({ url }, response) => {
      if (url === "/away") response.writeHead(302, { location: `${secret.url}/` }).end();
      else if (url === "/here") response.writeHead(302, { location: "/bag.png" }).end();
      else if (url === "/round") response.writeHead(302, { location: "/round" }).end();
      else if (url === "/large") response.end(Buffer.alloc(1_000_001));
      else if (url === "/bag.png") response.end(bag);
      else response.writeHead(404).end();
    });
    const fetching = await serve(["--allow-url-host", host.name, "--max-body", "1"]);
    const ask = (url: unknown) =>
      post("/classify?top_k=1", JSON.stringify({ url }), { "content-type": "application/json" }, fetching);
    for (const path of ["/bag.png", "/here"])
      expect((await (await ask(host.url + path)).json()).results[0].label).toBe("Bag");
    const refused: [unknown, number, string][] = [
      [`${secret.url}/`, 403, "ACCESS_DENIED"],
      [`${host.url}/away`, 403, "ACCESS_DENIED"],
      [`http://me:word@${host.name}/bag.png`, 403, "ACCESS_DENIED"],
      [`http://${host.name}@${secret.name}/`, 403, "ACCESS_DENIED"],
      ["file:///etc/passwd", 400, "INVALID_ARGUMENT"],
      ["bag.png", 400, "INVALID_ARGUMENT"],
      [7, 400, "INVALID_ARGUMENT"],
      [`${host.url}/round`, 422, "NETWORK"],
      [`${host.url}/gone`, 422, "NETWORK"],
      [`${host.url}/large`, 413, "PAYLOAD_TOO_LARGE"],
    ];
    for (const [url, status, code] of refused) expect(await refusal(await ask(url))).toEqual([status, code]);
    for (const { close } of [secret, host]) close();
    await stop(fetching);
  });

  async function listen(answer: (request: IncomingMessage, response: ServerResponse) => void) {
    const other = createServer(answer).listen(0, "127.0.0.1");
    await once(other, "listening");
    const name = `127.0.0.1:${(other.address() as AddressInfo).port}`;
    return { name, url: `http://${name}`, close: () => other.close() };
  }
});

describe("shutdown and faults", () => {
  test.each(["SIGTERM", "SIGINT"] as const)(
    "%s finishes what was accepted and accepts nothing new",
    async (signal) => {
      const served = await serve(["--model", "test/fixtures/tiny"]);
      const accepted = [dawdle(served), dawdle(served), dawdle(served)];
      await until(async () => (await metric("vit_msn_requests_in_progress", served)) === 3);
      const idle = connect(served.port, "127.0.0.1");
      await once(idle, "connect");
      const finished = stop(served, signal);
      await until(async () => served.printed().includes("stopping"));
      for (const { finish } of accepted) finish();
      for (const { answer } of accepted) {
        const response = await answer;
        expect([response.statusCode, response.headers.connection]).toEqual([200, "close"]);
        let text = "";
        for await (const chunk of response) text += chunk;
        expect(JSON.parse(text).embedding).toHaveLength(48);
      }
      const { code, stderr } = await finished;
      expect([code, stderr]).toEqual([0, expect.stringContaining("stopping after the accepted requests")]);
      await expect(fetch(`${served.url}/health`)).rejects.toThrow();
      idle.destroy();
    },
  );

  test("/ready shows that it drains, /health that it works, and requests are still answered", async () => {
    const served = await serve(["--model", "test/fixtures/tiny", "--drain", "86400"]);
    expect((await fetch(`${served.url}/ready`)).status).toBe(200);
    served.process.kill("SIGTERM");
    await until(async () => (await fetch(`${served.url}/ready`)).status === 503);
    const health = await fetch(`${served.url}/health`);
    expect([health.status, (await health.json()).status]).toEqual([200, "stopping"]);
    const answer = await post("/embed", bag, PNG, served);
    expect([answer.status, answer.headers.get("connection")]).toEqual([200, "close"]);
    // A second signal ends it at once.
    expect((await stop(served)).signal).toBe("SIGTERM");
  });

  test.each(["GET /metrics", "POST /embed"])(
    "clients that abandon pipelined %s requests don't keep it from ending",
    async (line) => {
      const served = await serve(["--model", "test/fixtures/tiny"]);
      const body = line.startsWith("POST") ? bag : new Uint8Array();
      const head = `${line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${body.length}\r\n\r\n`;
      const one = Buffer.concat([Buffer.from(head), body]);
      const client = connect(served.port, "127.0.0.1");
      client.write(Buffer.concat(Array(100).fill(one)));
      await once(client, "data");
      client.resetAndDestroy();
      expect((await stop(served)).code).toBe(0);
    },
  );

  test("/health notices an engine that died, and the model is loaded again", async () => {
    // What ends the Workers that the engine computes in.
    const program = `
      import threads from "node:worker_threads";
      import { syncBuiltinESMExports } from "node:module";
      const all = [];
      threads.Worker = class extends threads.Worker {
        constructor(...given) { super(...given); all.push(this); }
      };
      syncBuiltinESMExports();
      process.on("SIGUSR2", () => { for (const worker of all.splice(0)) worker.terminate(); });`;
    const node = ["--import", `data:text/javascript,${encodeURIComponent(program)}`];
    const served = await serve(["--model", "test/fixtures/tiny"], { node });
    const expected = await (await post("/embed", bag, PNG, served)).text();
    served.process.kill("SIGUSR2");
    await until(async () => {
      await fetch(`${served.url}/health`);
      return served.printed().includes("the engine died; loading the model again");
    });
    await until(async () => (await fetch(`${served.url}/ready`)).status === 200);
    expect(await (await post("/embed", bag, PNG, served)).text()).toBe(expected);
    const { code, stderr } = await stop(served);
    expect([code, stderr.match(/: the engine died; loading the model again/g)?.length]).toEqual([0, 2]);
    expect(stderr).not.toMatch(/\n {4}at /);
  });

  test("a decoder that doesn't end doesn't keep it", async () => {
    // Work in one of the threads that decoders run in, for hours.
    const program = `
      import { pbkdf2 } from "node:crypto";
      import { isMainThread } from "node:worker_threads";
      if (isMainThread) pbkdf2("a", "b", 2 ** 31 - 1, 64, "sha512", () => {});`;
    const node = ["--import", `data:text/javascript,${encodeURIComponent(program)}`];
    const served = await serve(["--model", "test/fixtures/tiny"], { node });
    const { signal, stderr } = await stop(served);
    expect([signal, stderr]).toEqual(["SIGTERM", expect.stringContaining("without waiting")]);
  });

  test("/health names the model, not its path", async () => {
    const served = await serve(["--model", join(root, "test/fixtures/tiny")]);
    const text = await (await fetch(`${served.url}/health`)).text();
    expect(JSON.parse(text).model).toBe("tiny");
    expect(text).not.toContain(root);
    await stop(served);
  });

  test("a port that is taken, and impossible options, are errors", async () => {
    const taken = await vit_msn(["serve", "--port", String(server.port), "--model", "test/fixtures/tiny"]);
    expect([taken.code, taken.stderr]).toEqual([
      1,
      expect.stringMatching(/can't listen on .*EADDRINUSE.*\[IO\]/),
    ]);
    for (const wrong of [
      ["--port", "70000"],
      ["--max-queue", "0"],
      ["--only", "paint"],
      ["--cors", "https://app.example/"],
    ])
      expect((await vit_msn(["serve", ...wrong])).code).toBe(2);
    const help = spawnSync(process.execPath, [join(root, "dist/cli.js"), "serve", "--help"], {
      encoding: "utf8",
    });
    expect(help.stdout).toContain("--allow-url-host");
  });

  test("a hundred requests at once are all answered, and everything is freed", async () => {
    const open = await serve(["--max-queue", "200", "--model", "test/fixtures/tiny"]);
    const expected = await (await post("/embed", bag, PNG, open)).text();
    const answers = await Promise.all(Array.from({ length: 100 }, () => post("/embed", bag, PNG, open)));
    for (const answer of answers) expect(await answer.text()).toBe(expected);
    expect(await metric("vit_msn_requests_in_progress", open)).toBe(0);
    // Some shared a batch; how many depends on the machine's speed.
    expect(await metric('vit_msn_batch_size_count{task="embed"}', open)).toBeLessThan(101);
    expect((await stop(open)).code).toBe(0);
  });
});
