// The Worker's side of an engine in a Worker: runs the calls of worker_engine.ts in order.
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { create_engine } from "../create_engine.ts";
import type { Engine, EngineMemory, Handle } from "../engine.ts";
import type { ThreadMessage } from "../wasm/thread.ts";
import type {
  EngineCall,
  EngineReply,
  EngineRequest,
  Numbers,
  RemoteError,
  StartReport,
} from "./protocol.ts";
import { map_handles, OPS, type OpName, type Question } from "./remote_ops.ts";
import { pack, unpack } from "./remote_values.ts";

type Post = (reply: EngineReply, transfer: ArrayBuffer[]) => void;
type Callable = Record<string, (...args: unknown[]) => unknown>;

/**
 * Answers requests through `post`.
 * @param hear_of_threads is called with messages about threads that the caller starts.
 */
export function serve_engine(
  post: Post,
  hear_of_threads: (message: ThreadMessage) => void = () => {},
): (request: EngineRequest) => void {
  let host: EngineHost | undefined;
  env.warn = (warning) => post({ warning }, []);
  return (request) => {
    if (request === "end") void end(host, post);
    else if ("calls" in request) host?.run(request.calls);
    else if ("threads" in request) hear_of_threads(request.threads);
    else {
      const { allow_software, ...settings } = request.settings;
      Object.assign(env, settings);
      env.webgpu.allow_software = allow_software;
      create_engine(request.start).then(
        ({ engine, device, engine_info }) => {
          host = new EngineHost(engine, post);
          const ops = (Object.keys(OPS) as OpName[]).filter((op) => op in engine);
          const report: StartReport = { device, engine_info, ops };
          host.answer(0, report);
        },
        (error) => post({ question: 0, error: describe(error), memory: NOTHING }, []),
      );
    }
  };
}

/** Ends the engine's threads, because not every runtime ends them with this Worker. */
async function end(host: EngineHost | undefined, post: Post): Promise<void> {
  await host?.dispose();
  post("ended", []);
}

const NOTHING: EngineMemory = { handles: 0, bytes: 0, reserved: 0 };

class EngineHost {
  readonly #engine: Engine;
  readonly #post: Post;
  readonly #handles = new Map<number, Handle>();
  /** Why a value couldn't be computed: reading it reports this, and ops that need it don't run. */
  readonly #failures = new Map<number, RemoteError>();
  #memory = NOTHING;

  constructor(engine: Engine, post: Post) {
    this.#engine = engine;
    this.#post = post;
  }

  run(calls: readonly EngineCall[]): void {
    for (const call of calls) {
      if (call.op === "free") this.#free(call.handle);
      else if ("question" in call) this.#ask(call.question, call.op, call.args);
      else this.#op(call.op, call.args.map(unpack), call.results);
    }
    const before = this.#memory;
    const { handles, bytes, reserved } = this.#report();
    if (handles !== before.handles || bytes !== before.bytes || reserved !== before.reserved)
      this.#post({ memory: this.#memory }, []);
  }

  dispose(): Promise<void> {
    return this.#engine.dispose();
  }

  answer(question: number, value: unknown): void {
    const buffers: ArrayBuffer[] = [];
    const packed = pack(value, buffers, true);
    this.#post({ question, value: packed, memory: this.#report() }, buffers);
  }

  #op(op: OpName, args: unknown[], results: number | Numbers | undefined): void {
    try {
      const value = this.#call(
        op,
        map_handles(OPS[op].handles, args, (handle) => this.#of(handle)),
      );
      if (typeof results === "number") this.#handles.set(results, value as Handle);
      for (const [name, number] of entries(results))
        this.#handles.set(number, (value as Record<string, Handle>)[name] as Handle);
    } catch (error) {
      const failure = error instanceof Failed ? error.failure : describe(error, op);
      const failed = results === undefined ? (args[0] as number) : results;
      if (typeof failed === "number") this.#failures.set(failed, failure);
      for (const [, number] of entries(failed)) this.#failures.set(number, failure);
    }
  }

  async #ask(question: number, op: Question, [handle, ...args]: unknown[]): Promise<void> {
    try {
      this.answer(question, await this.#call(op, [this.#of(handle as number), ...args]));
    } catch (error) {
      const failure = error instanceof Failed ? error.failure : describe(error, op);
      this.#post({ question, error: failure, memory: this.#report() }, []);
    }
  }

  #free(number: number): void {
    const handle = this.#handles.get(number);
    this.#handles.delete(number);
    this.#failures.delete(number);
    if (handle !== undefined) this.#engine.free(handle);
  }

  #call(op: string, args: unknown[]): unknown {
    return (this.#engine as unknown as Callable)[op]?.(...args);
  }

  /** The engine's handle for the caller's number. */
  #of(number: number): Handle {
    const failure = this.#failures.get(number);
    if (failure !== undefined) throw new Failed(failure);
    return this.#handles.get(number) as Handle;
  }

  #report(): EngineMemory {
    try {
      this.#memory = this.#engine.memory();
    } catch {
      this.#memory = NOTHING; // a dead engine can't report it
    }
    return this.#memory;
  }
}

function entries(results: number | Numbers | undefined): [string, number][] {
  const all = typeof results === "object" ? Object.entries(results) : [];
  return all.filter((entry): entry is [string, number] => entry[1] !== undefined);
}

/** An op on which this one depends has failed, for this reason. */
class Failed extends Error {
  readonly failure: RemoteError;

  constructor(failure: RemoteError) {
    super(failure.message);
    this.failure = failure;
  }
}

/** The form of an error in a message, with the op that raised it. */
function describe(error: unknown, op?: string): RemoteError {
  const where = op === undefined ? "" : ` (in ${op})`;
  if (error instanceof VitMsnError) return { code: error.code, message: error.message + where };
  return { code: "ENGINE_DEAD", message: `The engine's Worker failed${where}: ${String(error)}` };
}
