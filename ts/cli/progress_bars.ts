import { Format, MultiBar, type Options, Presets, SingleBar } from "cli-progress";
import type { ProgressCallback, ProgressInfo } from "../index.ts";
import { visible } from "./terminal.ts";

const OPTIONS = { stream: process.stderr, hideCursor: true, clearOnComplete: true };

/** Whether bars are shown: standard error must be a terminal. */
function shows_bars(quiet: boolean): boolean {
  return !quiet && process.stderr.isTTY === true;
}

/** A bar on standard error, to be started; undefined where bars aren't shown. */
export function make_bar(quiet: boolean, options: Options): SingleBar | undefined {
  return shows_bars(quiet) ? new SingleBar({ ...OPTIONS, ...options }, Presets.shades_classic) : undefined;
}

/** A started bar that counts up to `total`, with the time left. @param unit what is counted. */
export function start_counting_bar(quiet: boolean, unit: string, total: number): SingleBar | undefined {
  const bar = make_bar(quiet, { format: with_time_left(`${unit} [{bar}] {value}/{total} | {left}`) });
  bar?.start(total, 0);
  return bar;
}

/** One bar for each file that is downloaded. */
export class DownloadBars {
  readonly #bars = new Map<string, SingleBar>();
  readonly #multi: MultiBar | undefined;

  constructor(quiet: boolean) {
    if (!shows_bars(quiet)) return;
    const format = with_time_left("{file} [{bar}] {percentage}% | {value}/{total} bytes | {left}");
    this.#multi = new MultiBar({ ...OPTIONS, format }, Presets.shades_classic);
  }

  readonly callback: ProgressCallback = ({ status, file, loaded = 0, total = 0 }: ProgressInfo) => {
    if (this.#multi === undefined || file === undefined) return;
    if (status !== "progress" && status !== "done") return;
    let bar = this.#bars.get(file);
    if (bar === undefined) {
      bar = this.#multi.create(Math.max(total, loaded), loaded, { file: visible(file) });
      this.#bars.set(file, bar);
    }
    bar.setTotal(Math.max(total, loaded));
    bar.update(loaded);
  };

  stop(): void {
    this.#multi?.stop();
  }
}

/** A bar's format in which {left} is the time left: cli-progress prints NULL or INF where it has no estimate. */
function with_time_left(format: string): Options["format"] {
  return (options, params, payload) => {
    const whole = format.replace("{left}", time_left(params.value, params.total, params.eta));
    return Format.Formatter({ ...options, format: whole }, params, payload);
  };
}

/** @param eta seconds, or cli-progress' word for an unknown number of them. */
export function time_left(value: number, total: number, eta: number | string): string {
  if (value >= total) return "done";
  return Number.isFinite(Number(eta)) ? `${eta} s left` : "time left unknown";
}
