import { engine_worker, start_worker } from "#workers";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import type { Engine, EngineMemory, Handle, TensorHandle } from "../engine.ts";
import { engine_dead, engine_disposed } from "../engine_errors.ts";
import type { EngineOptions, StartedEngine } from "../engine_options.ts";
import { ForwardQueue } from "../forward_queue.ts";
import type { TrainingEngine } from "../training_engine.ts";
import { start_threads } from "../wasm/threads.ts";
import type { Lost } from "../workers_types.ts";
import type { EngineCall, EngineReply, EngineRequest, Numbers, StartReport } from "./protocol.ts";
import { type Dims, map_handles, OPS, type OpName, QUESTIONS, type Question } from "./remote_ops.ts";
import { map_values, pack, unpack } from "./remote_values.ts";

/** Ends the Worker of an engine that was garbage-collected. */
const forgotten = new FinalizationRegistry<WorkerLink>((link) => void link.close());

/**
 * Starts an engine in a new Worker.
 * @throws VitMsnError like create_engine; if a Worker can't start, another error with the reason.
 */
export async function start_worker_engine(options: EngineOptions): Promise<StartedEngine> {
  const link = new WorkerLink();
  try {
    const { device, engine_info, ops } = await link.start(options);
    const engine = worker_engine(link, ops);
    forgotten.register(engine, link, link);
    return { engine, device, engine_info: Object.freeze({ ...engine_info, worker: true }) };
  } catch (error) {
    await link.close();
    throw error;
  }
}

/** The engine behind the link. */
function worker_engine(link: WorkerLink, ops: readonly OpName[]): Engine {
  const handles = new Handles();
  const run = (op: OpName, args: unknown[]): unknown => {
    link.check();
    const rule = OPS[op] as { handles: (typeof OPS)[OpName]["handles"]; dims: AnyRule };
    const dims = rule.dims(...map_handles(rule.handles, args, (handle) => handles.dims(handle)));
    const results = dims && handles.add(dims);
    link.post({ op, args, ...(results !== undefined && { results }) });
    return results;
  };
  const ask = async (op: Question, args: unknown[]): Promise<unknown> => {
    link.check();
    handles.dims(args[0] as number);
    return link.ask(op, args);
  };
  return {
    forward_queue: new ForwardQueue(),
    ...(methods(ops, run) as Pick<TrainingEngine, OpName>),
    ...(methods(QUESTIONS, ask) as Pick<Engine, Question>),
    dims(x: TensorHandle): number[] {
      link.check();
      return [...handles.dims(x)];
    },
    free(handle: Handle): void {
      if (link.ended) return; // clean-up may run after the end
      handles.remove(handle);
      link.post({ op: "free", handle });
    },
    memory: (): EngineMemory => {
      link.check();
      return { ...link.memory, handles: handles.size };
    },
    async dispose(): Promise<void> {
      forgotten.unregister(link);
      await link.close();
    },
  };
}

/** Numbers for the live objects in the Worker, and their dims. */
class Handles {
  readonly #dims = new Map<number, Dims>();
  #last = 0;

  get size(): number {
    return this.#dims.size;
  }

  /** A number for a result, or a record of numbers for a record; none for an absent result. */
  add(dims: Shapes): number | Numbers {
    if (!is_dims(dims)) return map_values(dims, (each) => each && (this.add(each) as number));
    this.#last += 1;
    this.#dims.set(this.#last, dims);
    return this.#last;
  }

  dims(handle: number): Dims {
    const dims = this.#dims.get(handle);
    if (dims !== undefined) return dims;
    throw new VitMsnError(
      "DISPOSED",
      `Handle ${handle} was freed or never existed: don't use a tensor after its scope ends.`,
    );
  }

  remove(handle: number): void {
    this.dims(handle);
    this.#dims.delete(handle);
  }
}

function is_dims(dims: Shapes): dims is Dims {
  return Array.isArray(dims);
}

type Shapes = Dims | Record<string, Dims | undefined>;
type AnyRule = (...args: unknown[]) => Shapes | undefined;

function methods<N extends string>(
  names: readonly N[],
  call: (name: N, args: unknown[]) => unknown,
): Record<N, (...args: unknown[]) => unknown> {
  const entries = names.map((name) => [name, (...args: unknown[]) => call(name, args)]);
  return Object.fromEntries(entries);
}

/** How long a Worker may take to end by itself. */
const GRACE_MS = 200;

/** The messages between an engine and its Worker. It doesn't reference the engine, which can be garbage-collected. */
class WorkerLink {
  memory: EngineMemory = { handles: 0, bytes: 0, reserved: 0 };
  readonly #worker = start_worker<EngineRequest, EngineReply>(engine_worker, (reply) => this.#hear(reply));
  readonly #questions = new Map<number, Answer>();
  #end_threads: (() => Promise<void>) | undefined;
  #calls: EngineCall[] = [];
  #buffers: ArrayBuffer[] = [];
  #asked = 0;
  /** Why calls are no longer answered. */
  #end: VitMsnError | undefined;
  #left: (() => void) | undefined;
  /** Resolves when the Worker has ended by itself, was lost, or has exceeded its grace period. */
  readonly #gone = new Promise<void>((resolve) => {
    this.#left = resolve;
  });
  /** Why the Worker was lost. */
  #lost: string | undefined;

  async start(options: EngineOptions): Promise<StartReport> {
    try {
      const answer = this.#expect(0);
      const { use_cache, cache_dir, cache_key, wide_vectors, webgpu } = env;
      const settings = {
        use_cache,
        cache_dir,
        cache_key,
        wide_vectors,
        allow_software: webgpu.allow_software,
      };
      this.#worker.post({ start: options, settings });
      return (await answer) as StartReport;
    } catch (error) {
      throw this.#lost === undefined ? error : new Error(this.#lost);
    }
  }

  get ended(): boolean {
    return this.#end !== undefined;
  }

  check(): void {
    if (this.#end !== undefined) throw again(this.#end);
  }

  /** Calls of one microtask are sent as one message; arrays are sent with their current values. */
  post(call: EngineCall): void {
    if (this.#calls.length === 0) queueMicrotask(() => this.#flush());
    const args = "args" in call && call.args.map((value) => pack(value, this.#buffers, false));
    this.#calls.push(args ? { ...call, args } : call);
  }

  ask(op: Question, args: unknown[]): Promise<unknown> {
    this.#asked += 1;
    this.post({ question: this.#asked, op, args });
    return this.#expect(this.#asked);
  }

  /** Ends the Worker and rejects pending calls; a busy Worker gets a short grace period to end by itself. */
  async close(): Promise<void> {
    this.#finish(engine_disposed());
    if (this.#lost === undefined) {
      const patience = setTimeout(() => this.#left?.(), GRACE_MS);
      this.#worker.post("end");
      await this.#gone;
      clearTimeout(patience);
    }
    await Promise.all([this.#worker.terminate(), this.#end_threads?.()]);
  }

  #flush(): void {
    if (this.#end === undefined) this.#worker.post({ calls: this.#calls }, this.#buffers);
    this.#calls = [];
    this.#buffers = [];
  }

  #expect(question: number): Promise<unknown> {
    if (this.#questions.size === 0) this.#worker.ref();
    return new Promise((resolve, reject) => this.#questions.set(question, { resolve, reject }));
  }

  #hear(reply: EngineReply | Lost): void {
    if (reply === "ended") this.#left?.();
    else if ("status" in reply) {
      this.#left?.();
      this.#lost ??= reply.reason;
      this.#finish(engine_dead(`its Worker was lost: ${reply.reason}.`));
    } else if ("warning" in reply) env.warn(reply.warning);
    else if ("threads" in reply)
      this.#end_threads = start_threads(reply.threads, (threads) => this.#worker.post({ threads }));
    else {
      this.memory = reply.memory;
      if ("question" in reply) this.#answer(reply);
    }
  }

  #answer(reply: Extract<EngineReply, { question: number }>): void {
    const answer = this.#questions.get(reply.question);
    this.#questions.delete(reply.question);
    if (this.#questions.size === 0) this.#worker.unref();
    if ("error" in reply) {
      const error = new VitMsnError(reply.error.code, reply.error.message);
      if (error.code === "ENGINE_DEAD") this.#finish(error);
      answer?.reject(error);
    } else answer?.resolve(unpack(reply.value));
  }

  #finish(error: VitMsnError): void {
    this.#end ??= error;
    for (const { reject } of this.#questions.values()) reject(again(error));
    this.#questions.clear();
  }
}

interface Answer {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** The same error, with a new stack. */
function again({ code, message, cause }: VitMsnError): VitMsnError {
  return new VitMsnError(code, message, { cause });
}
