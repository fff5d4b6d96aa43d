// The program of an engine's Worker in Node, Deno and Bun.
import { parentPort } from "node:worker_threads";
import { type EngineRequest, serve_engine } from "./engine_worker.ts";

const serve = serve_engine((reply, transfer) => parentPort?.postMessage(reply, transfer));
parentPort?.on("message", (request: EngineRequest) => serve(request));
