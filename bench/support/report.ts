import { existsSync, readFileSync } from "node:fs";
import os from "node:os";

export type Cell = string | number;
export type Row = Readonly<Record<string, Cell>>;

/** Where and when numbers were measured. */
export interface Machine {
  cpu: string;
  cores: number;
  /** What the processor has of the instructions that decide about speed; empty where the system doesn't report it. */
  features: readonly string[];
  memory_gib: number;
  node: string;
  v8: string;
  /** Processes that wanted a core over the last minute; above about 1 others were measured too. */
  load: number;
  date: string;
}

export function machine(): Machine {
  const cpus = os.cpus();
  return {
    cpu: cpus[0]?.model.trim() ?? os.arch(),
    cores: cpus.length,
    features: features(),
    memory_gib: Math.round(os.totalmem() / 2 ** 30),
    node: process.version,
    v8: process.versions.v8,
    load: round(os.loadavg()[0] as number, 2),
    date: new Date().toISOString().slice(0, 10),
  };
}

const FEATURES = ["fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimddp", "i8mm"];

function features(): string[] {
  const info = existsSync("/proc/cpuinfo") ? readFileSync("/proc/cpuinfo", "utf8") : "";
  const [, flags = ""] = /^(?:flags|Features)\s*:(.*)$/m.exec(info) ?? [];
  const words = new Set(flags.split(" "));
  return FEATURES.filter((feature) => words.has(feature));
}

/** Prints rows as a Markdown table with the machine above it, or everything as JSON. */
export function print(title: string, where: Machine, rows: readonly Row[], as_json: boolean): void {
  if (as_json) {
    console.log(JSON.stringify({ title, machine: where, rows }, null, 2));
    return;
  }
  console.log(`\n${title}\n${describe(where)}\n\n${table(rows)}`);
}

function describe({ cpu, cores, features, memory_gib, node, v8, load, date }: Machine): string {
  const with_features = features.length > 0 ? ` (${features.join(", ")})` : "";
  return `${cores} × ${cpu}${with_features}, ${memory_gib} GiB; Node ${node}, V8 ${v8}; load ${load} at the start; ${date}`;
}

/** A Markdown table, a column for each of the first row's keys. */
export function table(rows: readonly Row[]): string {
  const names = Object.keys(rows[0] ?? {});
  const cells = rows.map((row) => names.map((name) => show(row[name])));
  const widths = names.map((name, i) => Math.max(name.length, ...cells.map((line) => line[i]?.length ?? 0)));
  const is_number = names.map((name) => rows.every((row) => typeof row[name] === "number"));
  const line = (values: readonly string[]) =>
    `| ${values.map((v, i) => (is_number[i] ? v.padStart(widths[i] as number) : v.padEnd(widths[i] as number))).join(" | ")} |`;
  const rule = `|${widths.map((width, i) => (is_number[i] ? `${"-".repeat(width + 1)}:` : "-".repeat(width + 2))).join("|")}|`;
  return [line(names), rule, ...cells.map(line)].join("\n");
}

function show(value: Cell | undefined): string {
  return typeof value === "number" ? String(value) : (value ?? "");
}

export function round(value: number, digits = 1): number {
  return Number(value.toFixed(digits));
}
