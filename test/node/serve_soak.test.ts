import { expect, test } from "vitest";
import { ask, bad_clients } from "../soak/clients.mjs";
import { BAG, start_app } from "../support/http_app.ts";

// The clients of `npm run soak`, each in its turn and all at once.

const ANSWERS: Record<string, string> = {
  "/embed": '{"embedding":[28,28]}',
  "/classify": '{"results":[{"label":"Bag","score":0.5},{"label":"Boot","score":0.25}]}',
};

test("misbehaving clients of every kind don't disturb well-behaved ones", async () => {
  const { server, port, log } = await start_app({ max_queue: 1000 });
  const target = { port, image: BAG, patience_ms: 20 };
  let turn = 0;
  const do_right = async () => {
    const { path, status, text } = await ask(target, turn++);
    expect([status, text]).toEqual([200, ANSWERS[path]]);
  };
  for (const [name, client] of Object.entries(bad_clients)) {
    const wrong = client(target);
    await Promise.all([do_right(), do_right(), wrong]).catch((cause) => {
      throw new Error(name, { cause });
    });
  }
  const all = Object.values(bad_clients).map((client) => client({ ...target, patience_ms: 200 }));
  await Promise.all([...all, do_right()]);
  expect(log).toEqual([]);
  await server.close(2 ** 30);
});
