import * as ort from "onnxruntime-web";
import type { OpenPeer } from "./peer.ts";

/** onnxruntime-web with all graph optimisations. */
export const open_onnxruntime_web: OpenPeer = async ({ onnx, num_threads }) => {
  ort.env.wasm.numThreads = num_threads;
  const session = await ort.InferenceSession.create(await onnx(), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "all",
  });
  const [input, output] = [session.inputNames[0] as string, session.outputNames[0] as string];
  return {
    async run({ data, dims }) {
      const outputs = await session.run({ [input]: new ort.Tensor("float32", data, dims) });
      return outputs[output]?.data as Float32Array;
    },
    close: () => session.release(),
  };
};
