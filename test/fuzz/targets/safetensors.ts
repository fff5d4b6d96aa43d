import { memory_file } from "../../../ts/loading/bytes.ts";
import { read_safetensors_header } from "../../../ts/loading/formats/safetensors.ts";

export const dictionary = [
  '"dtype":"F32"',
  '"shape":[',
  '"data_offsets":[0,16]',
  '"__metadata__":{"format":"pt"}',
  "F64",
  "BF16",
  "I8",
  "9007199254740993",
  "1e3",
  "-1",
  "\\u0000",
  "\\ud800",
];

export async function fuzz(bytes: Uint8Array): Promise<void> {
  const entries = await read_safetensors_header(memory_file("model.safetensors", bytes));
  for (const { key, dims, start, end } of entries) {
    const in_file = start >= 8 && start <= end && end <= bytes.length;
    if (!in_file || dims.some((dim) => !Number.isSafeInteger(dim) || dim < 0))
      throw new Error(`${key} was accepted at ${start} to ${end} of ${bytes.length} bytes.`);
  }
}
