/**
 * Characters that a terminal interprets or doesn't show: control characters, marks that change the direction of writing, line
 * separators and byte order marks; also the bytes of file names that aren't UTF-8.
 */
const INVISIBLE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what the expression looks for
  /[\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;

const SHORT: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/**
 * Untrusted text (names of files, members and classes, servers' messages) as one line that is safe to print: invisible
 * characters become escapes.
 */
export function visible(text: string): string {
  return text.replace(INVISIBLE, (character) => {
    const code = character.charCodeAt(0);
    const hex = code.toString(16);
    return SHORT[character] ?? (code < 0x100 ? `\\x${hex.padStart(2, "0")}` : `\\u${hex.padStart(4, "0")}`);
  });
}

/** The same for several lines. */
export function visible_lines(text: string): string {
  return text.split("\n").map(visible).join("\n");
}

/** JSON text as standard output gets it: on a terminal, invisible characters become JSON's escapes. */
export function json_for_stdout(text: string): string {
  if (!process.stdout.isTTY) return text;
  return text.replace(INVISIBLE, (character) =>
    character === "\n" ? character : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Prints a message on standard error. @param before escape codes that move the cursor first. */
export function notify(message: string, before = ""): void {
  process.stderr.write(`${before}vit-msn: ${visible(message)}\n`);
}
