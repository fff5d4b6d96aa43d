// The studio's Worker: it has the models and does all that takes time, so that the page never waits.
import { plain_error, type Reply, type Request, transferables } from "./calls.ts";
import { Service } from "./service.ts";

const service = new Service();
const running = new Map<number, AbortController>();
/** Posts to the page. In a Worker; the page's own function of this name takes other arguments. */
const post = postMessage as unknown as (reply: Reply, transfer?: Transferable[]) => void;

addEventListener("message", ({ data }: MessageEvent<Request>) => {
  if ("abort" in data) running.get(data.id)?.abort();
  else void answer(data.id, data.method, data.args);
});

async function answer(id: number, method: string, args: unknown[]): Promise<void> {
  const controller = new AbortController();
  running.set(id, controller);
  const call = { signal: controller.signal, progress: (progress: unknown) => post({ id, progress }) };
  try {
    const work = service[method as keyof Service] as (...args: unknown[]) => unknown;
    const result = await work.call(service, call, ...args);
    post({ id, result }, transferables(result));
  } catch (error) {
    post({ id, error: plain_error(error) });
  } finally {
    running.delete(id);
  }
}
