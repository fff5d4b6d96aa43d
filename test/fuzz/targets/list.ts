import { read_lines } from "../../../ts/cli/batch/list.ts";

export const dictionary = [
  Uint8Array.of(0xef, 0xbb, 0xbf),
  Uint8Array.of(0xff, 0xfe),
  Uint8Array.of(0xfe, 0xff),
  "\r\n",
  "\0",
  "data:image/png;base64,",
  "https://",
];

async function* pieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 7) yield bytes.subarray(at, at + 7);
}

export async function fuzz(bytes: Uint8Array): Promise<void> {
  let last = 0;
  for await (const { text, number } of read_lines(pieces(bytes), "list.txt")) {
    if (number <= last || text.trim() === "") throw new Error(`Line ${number} is ${JSON.stringify(text)}.`);
    last = number;
  }
}
