// The program of an engine's Worker in browsers.

import { serve_engine } from "./engine_worker.ts";
import type { EngineReply, EngineRequest } from "./protocol.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<EngineRequest>) => void) | null;
  postMessage(reply: EngineReply, transfer: ArrayBuffer[]): void;
};
const serve = serve_engine((reply, transfer) => scope.postMessage(reply, transfer));
scope.onmessage = ({ data }) => serve(data);
