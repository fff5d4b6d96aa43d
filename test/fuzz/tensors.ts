import type { CheckpointTensor } from "../../ts/loading/types.ts";

const MAX_READ = 1 << 16;
const BYTES = { float32: 4, float16: 2, bfloat16: 2, int8: 1 } as const;

export function numel_of_tensor({ dims }: CheckpointTensor): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

/** Reads a tensor's first bytes, which must be there. */
export async function read_beginning(tensor: CheckpointTensor, numel: number): Promise<void> {
  const length = Math.min(numel * BYTES[tensor.dtype], MAX_READ);
  const { byteLength } = await tensor.read(0, length);
  if (byteLength !== length) throw new Error(`${tensor.key}: ${byteLength} of ${length} bytes were read.`);
}
