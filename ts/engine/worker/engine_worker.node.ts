// The program of an engine's Worker in Node, Deno and Bun.

import { parentPort } from "node:worker_threads";
import { serve_engine } from "./engine_worker.ts";
import type { EngineRequest } from "./protocol.ts";

const serve = serve_engine((reply, transfer) => parentPort?.postMessage(reply, transfer));
parentPort?.on("message", (request: EngineRequest) => serve(request));
