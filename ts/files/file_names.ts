/**
 * Converts file names that aren't UTF-8 to text and back: a byte that isn't part of a UTF-8 sequence becomes a lone surrogate
 * from U+DC80 to U+DCFF, as in Python's os.fsdecode.
 */

/** With the flag u, surrogates in pairs don't match. */
const ESCAPED = /[\udc80-\udcff]/u;

/** The text of a file name's bytes. */
export function decode_name(bytes: Uint8Array): string {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const decode = (part: Uint8Array) => {
    try {
      return decoder.decode(part);
    } catch {
      return undefined;
    }
  };
  const whole = decode(bytes);
  if (whole !== undefined) return whole;
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const length = sequence_length(bytes[at] as number);
    const character = decode(bytes.subarray(at, at + length));
    text += character ?? String.fromCharCode(0xdc00 + (bytes[at] as number));
    at += character === undefined ? 1 : length;
  }
  return text;
}

/** The inverse of decode_name: bytes for a path that isn't UTF-8; other paths stay text. */
export function encode_name(path: string): string | Buffer {
  if (!ESCAPED.test(path)) return path;
  const encoder = new TextEncoder();
  const parts = path.split(/([\udc80-\udcff])/u).map((part, i) => {
    return i % 2 === 1 ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part);
  });
  return Buffer.concat(parts);
}

/** The number of bytes in a character, by its first byte. */
function sequence_length(lead: number): number {
  if (lead >= 0xf0) return 4;
  if (lead >= 0xe0) return 3;
  return lead >= 0xc0 ? 2 : 1;
}

/** Compares by code points, like Python's sorted(); JavaScript compares UTF-16 units. */
export function by_code_points(a: string, b: string): number {
  for (let i = 0; i < a.length && i < b.length; i++) {
    const [x, y] = [a.codePointAt(i) as number, b.codePointAt(i) as number];
    if (x !== y) return x - y;
  }
  return a.length - b.length;
}

/** Files that operating systems create in folders. */
const SYSTEM_FILES = ["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"];
/** Folders that tools create next to data. */
const SYSTEM_FOLDERS = ["__macosx", "__pycache__"];

/** Whether a file or folder isn't part of the data: hidden, or created by the system. */
export function is_ignored(name: string): boolean {
  const lower = name.toLowerCase();
  return name.startsWith(".") || SYSTEM_FILES.includes(lower) || SYSTEM_FOLDERS.includes(lower);
}

/** Describes special folders in messages. */
export const SPECIAL_FOLDER = 'folders whose names begin with "__"';

/** Folders that Hugging Face datasets skips, too; unlike ignored ones they are reported. */
export function is_special_folder(name: string): boolean {
  return name.startsWith("__");
}

/** Whether an archive's member is hidden, such as those that macOS adds for each file. */
export function is_hidden_member(name: string): boolean {
  return /(?:^|\/)(?:__MACOSX\/|\.[^/]*$)/.test(name);
}
