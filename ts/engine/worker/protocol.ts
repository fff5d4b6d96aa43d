// The messages between an engine in a Worker and the thread that uses it.
import type { Env } from "../../env.ts";
import type { ErrorCode } from "../../errors.ts";
import type { EngineMemory } from "../engine.ts";
import type { EngineInfo } from "../engine_info.ts";
import type { Device, EngineOptions } from "../engine_options.ts";
import type { ThreadMessage } from "../wasm/thread.ts";
import type { OpName, Question } from "./remote_ops.ts";

/** The handles of a record of results. */
export type Numbers = Record<string, number | undefined>;

/** An op, a question or a free. Handles are the caller's numbers. */
export type EngineCall =
  | { op: OpName; args: unknown[]; results?: number | Numbers }
  | { question: number; op: Question; args: unknown[] }
  | { op: "free"; handle: number };

/** The settings of `env` that apply in the Worker, too. */
export interface WorkerSettings extends Pick<Env, "use_cache" | "cache_dir" | "cache_key" | "wide_vectors"> {
  allow_software: boolean | undefined;
}

export type EngineRequest =
  | { start: EngineOptions; settings: WorkerSettings }
  | { calls: EngineCall[] }
  /** That all threads work, or why they can't; later the loss of one. */
  | { threads: ThreadMessage }
  | "end";

export interface RemoteError {
  code: ErrorCode;
  message: string;
}

/** Question 0 is the start, and its answer a StartReport. */
export type EngineReply =
  | { question: number; value: unknown; memory: EngineMemory }
  | { question: number; error: RemoteError; memory: EngineMemory }
  | { memory: EngineMemory }
  | { warning: string }
  /** The caller is to start as many threads, which get the rest at these ports. */
  | { threads: MessagePort[] }
  | "ended";

export interface StartReport {
  device: Device;
  engine_info: EngineInfo;
  /** The ops that this engine has: not every engine can train. */
  ops: OpName[];
}
