/**
 * The brands of an ISO media file: the major one and those it is compatible with. None where the file doesn't begin with a
 * well-formed "ftyp" box: other formats may have that word there, as an SVG drawing in its first comment.
 */
export function brands(bytes: Uint8Array): string[] {
  const end = ((bytes[2] as number) << 8) | (bytes[3] as number);
  const is_box =
    has(bytes, 0, "\0\0") && has(bytes, 4, "ftyp") && end >= 16 && end % 4 === 0 && end <= bytes.length;
  const found: string[] = [];
  for (let at = 8; is_box && at < Math.min(end, 256); at += 4)
    if (at !== 12) found.push(latin1(bytes, at, 4));
  return found;
}

export function has(bytes: Uint8Array, offset: number, word: string): boolean {
  return latin1(bytes, offset, word.length) === word;
}

export function latin1(bytes: Uint8Array, offset: number, length: number): string {
  return String.fromCharCode(...bytes.subarray(offset, offset + length));
}
