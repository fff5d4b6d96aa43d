import type { SingleBar } from "cli-progress";
import { make_bar } from "../progress_bars.ts";
import { notify } from "../terminal.ts";

/** How often a line is logged where standard error is no terminal. */
const LOG_EVERY_MS = 60_000;
/** The rate and the time left are averaged over about this many seconds. */
const SMOOTHING_SECONDS = 20;

/** A run's progress on standard error: a bar in a terminal, occasional lines in a log. */
export class RunProgress {
  readonly #bar: SingleBar | undefined;
  readonly #quiet: boolean;
  #done = 0;
  #failed = 0;
  #done_before = 0;
  #total: number | undefined;
  #rate = 0;
  #last = { time: Date.now(), done: 0 };
  #logged = Date.now();

  constructor(quiet: boolean, done_before = 0) {
    this.#quiet = quiet;
    this.#done_before = done_before;
    this.#bar = make_bar(quiet, { format: "[{bar}] {count} | {rate} images/s | {left}", fps: 5 });
    this.#bar?.start(1, 0, this.#fields());
  }

  /** Whether the total number of images would be shown. */
  get wants_total(): boolean {
    return this.#bar !== undefined;
  }

  set total(count: number) {
    this.#total = count;
    this.#bar?.setTotal(Math.max(count, 1));
  }

  /** @param failures a message for each image that failed. */
  add(done: number, failures: readonly string[]): void {
    this.#done += done + failures.length;
    this.#failed += failures.length;
    for (const message of failures) this.notify(message);
    this.#measure();
    this.#bar?.update(this.#total === undefined ? 0 : this.#done_before + this.#done, this.#fields());
    if (this.#bar === undefined && !this.#quiet && Date.now() - this.#logged >= LOG_EVERY_MS) this.#log();
  }

  /** Prints a line above the bar. */
  notify(message: string): void {
    notify(message, this.#bar === undefined ? "" : "\r\x1b[K");
  }

  stop(): void {
    this.#bar?.stop();
  }

  #log(): void {
    this.#logged = Date.now();
    const { count, rate } = this.#fields();
    this.notify(`${count}, ${rate} images/s`);
  }

  #measure(): void {
    const seconds = (Date.now() - this.#last.time) / 1000;
    if (seconds < 0.5) return;
    const rate = (this.#done - this.#last.done) / seconds;
    const share = this.#rate === 0 ? 1 : 1 - Math.exp(-seconds / SMOOTHING_SECONDS);
    this.#rate += share * (rate - this.#rate);
    this.#last = { time: Date.now(), done: this.#done };
  }

  #fields() {
    const done = this.#done_before + this.#done;
    const total = this.#total === undefined ? "" : ` of ${this.#total}`;
    const failed = this.#failed === 0 ? "" : `, ${this.#failed} failed`;
    return {
      count: `${done}${total}${failed}`,
      rate: this.#rate.toPrecision(3),
      left: this.#time_left(done),
    };
  }

  #time_left(done: number): string {
    if (this.#total === undefined || this.#rate === 0) return "time left unknown";
    const seconds = Math.max(0, Math.round((this.#total - done) / this.#rate));
    const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
    if (hours > 0) return `${hours} h ${minutes} min left`;
    return minutes > 0 ? `${minutes} min ${seconds % 60} s left` : `${seconds} s left`;
  }
}
