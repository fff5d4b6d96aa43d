import { describe, expect, test } from "vitest";
import { type Access, access_line, message_line } from "../../ts/cli/serve/access_log.ts";
import type { ServedTask } from "../../ts/cli/serve/served_task.ts";
import { BAG, classes, exchange, read_here, request_of, sizes, start_app } from "../support/http_app.ts";

// Several images per request, the access log, OpenAPI, and the number of connections.

const JSON_TYPE = { "content-type": "application/json" };
const base64 = BAG.toString("base64");

describe("several images in a request", () => {
  test("as a JSON list or a form's files give a list of answers, in their order", async () => {
    const { server, url } = await start_app();
    const post = async (path: string, body: BodyInit, headers = {}) => {
      const answer = await fetch(url + path, { method: "POST", body, headers });
      return [answer.status, await answer.json()];
    };
    const bmp = new Uint8Array(await tiny_bmp());
    const list = JSON.stringify({ inputs: [base64, Buffer.from(bmp).toString("base64")] });
    const embeddings = { images: [{ embedding: [28, 28] }, { embedding: [1, 2] }] };
    expect(await post("/embed", list, JSON_TYPE)).toEqual([200, embeddings]);
    const form = new FormData();
    form.append("image", new Blob([new Uint8Array(BAG)]), "a.png");
    form.append("image", new Blob([bmp]), "b.bmp");
    form.append("top_k", "1");
    expect(await post("/embed", form)).toEqual([200, embeddings]);
    const results = [{ label: "Bag", score: 0.5 }];
    expect(await post("/classify", form)).toEqual([200, { images: [{ results }, { results }] }]);
    // One image in a list gives a list, one file in a form doesn't.
    expect(await post("/embed", JSON.stringify({ image: [base64] }), JSON_TYPE)).toEqual([
      200,
      { images: [{ embedding: [28, 28] }] },
    ]);
    await server.close(0);
  });

  test("are computed together", async () => {
    const batches: number[] = [];
    const counting: ServedTask = {
      ...sizes,
      compute: async (images, signal) => {
        batches.push(images.length);
        return sizes.compute(images, signal);
      },
    };
    const { server, url } = await start_app({ max_batch: 8, max_wait_ms: 60_000 }, { embed: counting });
    const body = JSON.stringify({ image: Array(8).fill(base64) });
    const answer = await fetch(`${url}/embed`, { method: "POST", body, headers: JSON_TYPE });
    expect((await answer.json()).images).toHaveLength(8);
    expect(batches).toEqual([8]);
    await server.close(0);
  });

  test("if one can't be used, the error names it", async () => {
    const { server, url } = await start_app();
    const body = JSON.stringify({ image: [base64, base64, Buffer.from("hello").toString("base64")] });
    const answer = await fetch(`${url}/embed`, { method: "POST", body, headers: JSON_TYPE });
    expect([answer.status, await answer.json()]).toMatchObject([
      400,
      { error: { code: "INVALID_IMAGE", message: expect.stringMatching(/^Image 3 /) } },
    ]);
    await server.close(0);
  });
});

/** 1×2 pixels. */
async function tiny_bmp(): Promise<Buffer> {
  const bmp = Buffer.alloc(54 + 8);
  bmp.write("BM");
  bmp.writeUInt32LE(62, 2);
  bmp.writeUInt32LE(54, 10);
  bmp.writeUInt32LE(40, 14);
  bmp.writeUInt32LE(1, 18);
  bmp.writeUInt32LE(2, 22);
  bmp.writeUInt16LE(1, 26);
  bmp.writeUInt16LE(24, 28);
  return bmp;
}

describe("the access log", () => {
  test("has an entry for each request, refused ones included", async () => {
    const entries: Access[] = [];
    const { server, port } = await start_app({ on_access: (access) => entries.push(access) });
    await exchange(port, request_of("/embed?top_k=secret", BAG));
    const list = JSON.stringify({ image: [base64, base64] });
    const [answer] = await exchange(port, request_of("/embed", list, JSON_TYPE));
    await exchange(port, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    const client = "127.0.0.1";
    const ms = expect.any(Number);
    const bytes_out = expect.any(Number);
    expect(entries).toEqual([
      {
        ...{ client, method: "POST", path: "/embed", status: 400, ms, bytes_in: 0, bytes_out },
        ...{ images: 0, error: "INVALID_ARGUMENT" },
      },
      {
        ...{ client, method: "POST", path: "/embed", status: 200, ms, bytes_in: list.length },
        ...{ bytes_out: answer?.body.length, images: 2, error: undefined },
      },
      {
        ...{ client, method: "GET", path: "/health", status: 200, ms, bytes_in: 0, bytes_out },
        ...{ images: 0, error: undefined },
      },
    ]);
    await server.close(0);
  });

  test.each(["/\u001b[31m", "/a\nb", "/\u2028", `/${"x".repeat(10_000)}`, '/"}{'])(
    "is one line for any path: %j",
    (path) => {
      const access: Access = {
        ...{ client: "::1", method: "GET", path, status: 404, ms: 1.5, bytes_in: 0, bytes_out: 7 },
        ...{ images: 0, error: "NOT_FOUND" },
      };
      const now = new Date(0);
      const text = access_line(access, "text", now);
      expect(text).toMatch(
        /^1970-01-01T00:00:00\.000Z ::1 GET \S+ 404 NOT_FOUND 1\.5 ms, 0 images, 0 B in, 7 B out$/,
      );
      const json = access_line(access, "json", now);
      expect(JSON.parse(json)).toMatchObject({ time: now.toISOString(), status: 404, error: "NOT_FOUND" });
      for (const line of [text, json]) {
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what mustn't be there
        expect(line).not.toMatch(/[\0-\x1f\u2028]/);
        expect(line.length).toBeLessThan(500);
      }
    },
  );

  test("as JSON covers the server's own messages", () => {
    const now = new Date(0);
    expect(JSON.parse(message_line("it\nstarts", "json", now))).toEqual({
      time: now.toISOString(),
      message: "it\nstarts",
    });
    expect(message_line("it\nstarts", undefined)).toBe("vit-msn: it\\nstarts");
  });
});

describe("OpenAPI", () => {
  test("describes the tasks that are served, and every schema that it refers to", async () => {
    const { server, url } = await start_app({}, { embed: sizes });
    const document = await (await fetch(`${url}/openapi.json`)).json();
    expect(document).toMatchObject({ openapi: "3.1.0", info: { version: "1.2.3" } });
    expect(Object.keys(document.paths)).toEqual(["/embed", "/health", "/ready", "/metrics", "/openapi.json"]);
    const refs = [...JSON.stringify(document).matchAll(/"#\/components\/schemas\/([^"]+)"/g)];
    expect(refs.length).toBeGreaterThan(5);
    for (const [, name = ""] of refs) expect(document.components.schemas).toHaveProperty([name]);
    await server.close(0);
  });

  test("has every status that the server answers with", async () => {
    const { server, url } = await start_app({ max_bytes: 1000, max_pixels: 10 });
    const { paths } = await (await fetch(`${url}/openapi.json`)).json();
    const statuses = new Set<number>();
    for (const [body, headers] of [
      ["{", JSON_TYPE],
      ["x", { "content-type": "text/plain" }],
      ["x".repeat(2000), JSON_TYPE],
      ['{"url":"http://127.0.0.1/"}', JSON_TYPE],
    ] as const)
      statuses.add((await fetch(`${url}/classify`, { method: "POST", body, headers })).status);
    expect([...statuses]).toEqual([400, 415, 413, 403]);
    for (const status of statuses) expect(paths["/classify"].post.responses).toHaveProperty([`${status}`]);
    await server.close(0);
  });
});

test("connections above the limit are closed, and the others are answered", async () => {
  const waiting: (() => void)[] = [];
  const held: ServedTask = {
    ...classes,
    prepare: async (...given) => {
      await new Promise<void>((resolve) => waiting.push(resolve));
      return read_here(...given);
    },
  };
  const { server, port } = await start_app({ max_connections: 2 }, { classify: held });
  const first = [0, 1].map(() => exchange(port, request_of("/classify", BAG)));
  while (waiting.length < 2) await new Promise((resolve) => setImmediate(resolve));
  for (let i = 0; i < 3; i++) expect(await exchange(port)).toEqual([]);
  for (const open of waiting) open();
  expect((await Promise.all(first)).map(([answer]) => answer?.status)).toEqual([200, 200]);
  await server.close(0);
});
