import { readFile } from "node:fs/promises";

const SUPPORT = new URL("../../docs/guides/support.md", import.meta.url);

/**
 * The column of a table in docs/guides/support.md, by the first cells of its rows.
 * @param title the first cell of the table's header.
 * @param name how the column's header begins, in any case.
 */
export async function stated_column(title: string, name: string): Promise<Map<string, string>> {
  const lines = (await readFile(SUPPORT, "utf8")).split("\n");
  const start = lines.findIndex((line) => line.startsWith(`| ${title} |`));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith("|"));
  const [header = [], , ...rows] = lines.slice(start, end).map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  const column = header.findIndex((cell) => cell.toLowerCase().startsWith(name.toLowerCase()));
  return new Map(rows.map((row) => [row[0] as string, row[column] ?? ""]));
}
