// Answers a posted JPEG or PNG with its likeliest labels as JSON.

import jpeg_module from "@jsquash/jpeg/codec/dec/mozjpeg_dec.wasm";
import decode_jpeg, { init as init_jpeg } from "@jsquash/jpeg/decode.js";
import png_module from "@jsquash/png/codec/pkg/squoosh_png_bg.wasm";
import { decode as decode_png, init as init_png } from "@jsquash/png/decode.js";
import { env, pipeline, VitMsnError } from "vit-msn";

// Edge workers have no image decoders. These are imported as modules too, since a running worker can't compile any.
const decoders = {
  JPEG: { ready: () => init_jpeg(jpeg_module), decode: decode_jpeg },
  PNG: { ready: () => init_png(png_module), decode: decode_png },
};
env.decode = async (bytes, { format }) => {
  const decoder = decoders[format];
  if (decoder === undefined) throw new Error("this worker reads JPEG and PNG");
  decoder.is_ready ??= decoder.ready();
  await decoder.is_ready;
  return decoder.decode(bytes);
};

/** Shared by all requests while the worker lives. */
let loading;

export default {
  /** `MODEL`: a base URL with config.json, preprocessor_config.json and model.safetensors, or a hub repository's id. */
  async fetch(request, { MODEL }, context) {
    if (request.method !== "POST") return new Response("POST an image.\n", { status: 405 });
    try {
      loading ??= pipeline("image-classification", MODEL, { device: "wasm", dtype: "int8" });
      context.waitUntil(loading); // it continues for other clients if this one leaves
      const classify = await loading;
      const image = new Uint8Array(await request.arrayBuffer());
      return Response.json(await classify(image, { top_k: 3 }));
    } catch (error) {
      if (!(error instanceof VitMsnError)) throw error;
      if (error.code !== "INVALID_IMAGE") loading = undefined; // the next request loads it again
      const status = error.code === "INVALID_IMAGE" ? 400 : 500;
      return Response.json({ code: error.code, message: error.message }, { status });
    }
  },
};
