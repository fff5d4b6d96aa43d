import { RawImage } from "../../ts/image/raw_image.ts";

/** A worker that reads the image posted to it and posts its pixels back. */
globalThis.onmessage = async (event: MessageEvent<Uint8Array>) => {
  const { data, width, height, channels } = await RawImage.read(event.data);
  globalThis.postMessage({ data, width, height, channels });
};
