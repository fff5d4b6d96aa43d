import { invalid_argument, show } from "../errors.ts";
import { is_record } from "../options.ts";

/** What callbacks of every kind may keep in checkpoints. */
interface StatefulCallback {
  readonly state_name?: string;
  state?(): unknown;
  load_state?(state: unknown): void;
}

/** The names of what a kind of callback is told. */
type Told<Callback> = Exclude<keyof Callback, keyof StatefulCallback>;
type EventOf<Callback, Name extends keyof Callback> =
  NonNullable<Callback[Name]> extends (event: infer Event) => unknown ? Event : never;

/** Callbacks in the order in which they were added. */
export class CallbackList<Callback extends StatefulCallback> {
  readonly #callbacks: Callback[];

  constructor(callbacks: readonly Callback[] = []) {
    callbacks.forEach(check_callback);
    this.#callbacks = [...callbacks];
  }

  add(callback: Callback): void {
    check_callback(callback);
    this.#callbacks.push(callback);
  }

  /** Tells them one after the other. */
  async tell<Name extends Told<Callback>>(name: Name, event: EventOf<Callback, Name>): Promise<void> {
    for (const callback of this.#callbacks) {
      await (callback[name] as ((event: unknown) => void | Promise<void>) | undefined)?.call(callback, event);
    }
  }

  /** Puts what they keep into a checkpoint's state. */
  keep_states(states: Record<string, unknown>): void {
    for (const callback of this.#callbacks) {
      if (callback.state_name !== undefined && callback.state) states[callback.state_name] = callback.state();
    }
  }

  /** Gives back what they kept. */
  load_states(states: Readonly<Record<string, unknown>>): void {
    for (const callback of this.#callbacks) {
      const kept = callback.state_name === undefined ? undefined : states[callback.state_name];
      if (kept !== undefined) callback.load_state?.(kept);
    }
  }
}

function check_callback(callback: unknown): void {
  if (!is_record(callback))
    throw invalid_argument(`A callback must be an object, got ${show(callback)}.`, "callbacks");
}
