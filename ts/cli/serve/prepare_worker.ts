// The program of a Worker that decodes and resizes images for the server.
import { parentPort, workerData } from "node:worker_threads";
import { prepare_image } from "../../image/index.ts";
import { RawImage, ViTImageProcessor, VitMsnError } from "../../index.ts";
import type { PrepareReply, PrepareRequest } from "./preparers.ts";

const processors = (workerData as Record<string, unknown>[]).map(
  (settings) => new ViTImageProcessor(settings),
);

parentPort?.on("message", async (request: PrepareRequest) => {
  const reply = await answer(request);
  const pixels = "data" in reply ? [reply.data.buffer as ArrayBuffer] : [];
  parentPort?.postMessage(reply, pixels);
});

async function answer({ file, max_pixels, processor }: PrepareRequest): Promise<PrepareReply> {
  try {
    const image = await RawImage.read(new File([file.bytes as Uint8Array<ArrayBuffer>], file.name), {
      max_pixels,
    });
    const prepared = await prepare_image(image, processors[processor] as ViTImageProcessor);
    const { data, width, height, channels } = prepared;
    // A copy where nothing was resized: what sharp allocates can't be transferred.
    return { data: prepared === image ? new Uint8Array(data) : data, width, height, channels };
  } catch (error) {
    if (error instanceof VitMsnError) return { code: error.code, message: error.message };
    return { fault: String(error) };
  }
}
