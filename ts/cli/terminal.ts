/**
 * What a terminal obeys instead of showing, or shows as nothing: control characters, marks that reverse the direction of
 * writing, line separators, byte order marks; and bytes of file names that aren't UTF-8.
 */
const INVISIBLE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  /[\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;

const SHORT: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/**
 * Text from elsewhere (names of files, members and classes, servers' messages) as one line that a terminal shows as it is:
 * what is invisible is written as an escape.
 */
export function visible(text: string): string {
  return text.replace(INVISIBLE, (character) => {
    const code = character.charCodeAt(0);
    const hex = code.toString(16);
    return SHORT[character] ?? (code < 0x100 ? `\\x${hex.padStart(2, "0")}` : `\\u${hex.padStart(4, "0")}`);
  });
}

/** Several lines, each made visible. */
export function visible_lines(text: string): string {
  return text.split("\n").map(visible).join("\n");
}

/** A message on standard error. @param before what moves the cursor to where it goes. */
export function say(message: string, before = ""): void {
  process.stderr.write(`${before}vit-msn: ${visible(message)}\n`);
}
