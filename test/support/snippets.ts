import { readFile } from "node:fs/promises";

/** A fenced block of code in a Markdown file: its language, and the words after it ("browser", "deno", …). */
export interface Snippet {
  language: string;
  where: string;
  text: string;
  line: number;
}

const FENCE = /^```(\w+)[ \t]*([^\n]*)\n([\s\S]*?)^```$/gm;

/** Languages of blocks that aren't run: output, and settings of other programs. */
const NOT_RUN: ReadonlySet<string> = new Set(["text", "yaml", "ini"]);

/** The code of a Markdown file, from the top down. */
export async function read_snippets(path: string): Promise<Snippet[]> {
  const markdown = await readFile(path, "utf8");
  return [...markdown.matchAll(FENCE)]
    .map(([, language, where, text], i, all) => ({
      language: language as string,
      where: (where as string).trim(),
      text: text as string,
      line: markdown.slice(0, (all[i] as RegExpExecArray).index).split("\n").length,
    }))
    .filter(({ language }) => !NOT_RUN.has(language));
}
