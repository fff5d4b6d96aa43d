import { appendFile } from "node:fs/promises";
import { join } from "node:path";
import { make_folder, stat, write_durably } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";
import type { LogEntry } from "../../training/index.ts";
import { quoted } from "../batch/csv.ts";

interface LogFormat {
  file: string;
  /** The first line, if any. */
  header: string;
  lines(entry: LogEntry): string;
}

const FORMATS = {
  /** A line for each value: entries of training, evaluation and the whole run have different ones. */
  csv: {
    file: "log.csv",
    header: "step,epoch,name,value\n",
    lines: ({ step, epoch, ...values }) =>
      Object.entries(values)
        .map(([name, value]) => `${step},${epoch},${quoted(name)},${value}\n`)
        .join(""),
  },
  /** The entries of log_history. */
  jsonl: { file: "log.jsonl", header: "", lines: (entry) => `${JSON.stringify(entry)}\n` },
} satisfies Record<string, LogFormat>;

export const REPORT_TO = ["none", ...(Object.keys(FORMATS) as (keyof typeof FORMATS)[])] as const;

/** The names of log files in output_dir. */
export const LOG_FILES: readonly string[] = Object.values(FORMATS).map(({ file }) => file);

export interface LogFlags {
  report_to?: (typeof REPORT_TO)[number];
  logging_dir?: string;
  overwrite_output_dir?: boolean;
}

/** The fields of training events that a log needs. */
interface LoggedEvent {
  readonly state: { readonly log_history: readonly LogEntry[] };
}

/** Writes what training logs to a file, an entry at a time, so that other programs can follow the run. */
export class LogFile {
  readonly #format: LogFormat;
  readonly #path: string;
  readonly #may_replace: boolean;

  /** @param may_replace whether a run that starts may replace another run's log. */
  constructor(format: LogFormat, folder: string, may_replace: boolean) {
    this.#format = format;
    this.#path = join(folder, format.file);
    this.#may_replace = may_replace;
  }

  /** What was logged after the checkpoint that a run resumes from will be logged again. */
  async on_train_begin({ state: { log_history } }: LoggedEvent): Promise<void> {
    if (!this.#may_replace && log_history.length === 0) await this.#check_is_new();
    const { header, lines } = this.#format;
    await this.#write(() => write_durably(this.#path, header + log_history.map(lines).join("")));
  }

  async on_log({ state: { log_history } }: LoggedEvent): Promise<void> {
    const entry = log_history.at(-1) as LogEntry;
    await this.#write(() => appendFile(this.#path, this.#format.lines(entry)));
  }

  async #check_is_new(): Promise<void> {
    if ((await stat(this.#path).catch(() => undefined)) === undefined) return;
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${this.#path} is the log of another run; choose another logging_dir, or add --overwrite-output-dir.`,
      { details: { argument: "logging_dir" } },
    );
  }

  async #write(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (cause) {
      const message = `The log ${this.#path} can't be written: ${(cause as Error).message}.`;
      throw new VitMsnError("IO", message, { cause, details: { file: this.#path } });
    }
  }
}

/** The log that the options ask for: a callback, or none. */
export async function log_files(output_dir: string, flags: LogFlags): Promise<LogFile[]> {
  const { report_to = "none", logging_dir, overwrite_output_dir } = flags;
  if (report_to === "none") return [];
  if (logging_dir !== undefined) await make_folder(logging_dir);
  const may_replace = logging_dir === undefined || overwrite_output_dir === true;
  return [new LogFile(FORMATS[report_to], logging_dir ?? output_dir, may_replace)];
}
