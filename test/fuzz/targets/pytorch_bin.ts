import { memory_file } from "../../../ts/loading/bytes.ts";
import { read_pytorch_bin } from "../../../ts/loading/formats/pytorch_bin.ts";
import { concat, torch_file } from "../../support/torch_archive.ts";
import { numel_of_tensor, read_beginning } from "../tensors.ts";

/** How the format's zip file begins; an input without it is taken for the pickle inside one. */
const ZIP = [0x50, 0x4b];

export const dictionary = [
  "ctorch\nFloatStorage\n",
  "ctorch._utils\n_rebuild_tensor_v2\n",
  "ctorch._utils\n_rebuild_parameter\n",
  "ccollections\nOrderedDict\n",
  "cbuiltins\neval\n",
  Uint8Array.of(0x80, 2),
  Uint8Array.of(0x8a, 4, 0xff, 0xff, 0xff, 0x7f),
  "PK\x01\x02",
  "PK\x03\x04",
  "PK\x05\x06",
  "PK\x06\x06",
  "PK\x06\x07",
  "archive/data.pkl",
  "archive/data/0",
];

export async function fuzz(bytes: Uint8Array): Promise<void> {
  const is_zip = ZIP.every((byte, i) => bytes[i] === byte);
  const file = is_zip ? bytes : torch_file(concat(bytes));
  const { tensors } = await read_pytorch_bin(memory_file("pytorch_model.bin", file));
  for (const tensor of tensors) await read_beginning(tensor, numel_of_tensor(tensor));
}
