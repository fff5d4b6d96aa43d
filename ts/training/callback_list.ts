import { invalid_argument, show } from "../errors.ts";
import { is_record } from "../options.ts";

/** What callbacks of every kind may store in checkpoints. */
interface StatefulCallback {
  readonly state_name?: string;
  state?(): unknown;
  load_state?(state: unknown): void;
}

/** The names of the events of a kind of callback. */
type EventName<Callback> = Exclude<keyof Callback, keyof StatefulCallback>;
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

  /** Calls them one after the other. */
  async emit<Name extends EventName<Callback>>(name: Name, event: EventOf<Callback, Name>): Promise<void> {
    for (const callback of this.#callbacks) {
      await (callback[name] as ((event: unknown) => void | Promise<void>) | undefined)?.call(callback, event);
    }
  }

  /** Stores their states in a checkpoint's. */
  save_states(states: Record<string, unknown>): void {
    for (const callback of this.#callbacks) {
      if (callback.state_name !== undefined && callback.state) states[callback.state_name] = callback.state();
    }
  }

  /** Passes them their stored states. */
  load_states(states: Readonly<Record<string, unknown>>): void {
    for (const callback of this.#callbacks) {
      const stored = callback.state_name === undefined ? undefined : states[callback.state_name];
      if (stored !== undefined) callback.load_state?.(stored);
    }
  }
}

function check_callback(callback: unknown): void {
  if (!is_record(callback))
    throw invalid_argument(`A callback must be an object, got ${show(callback)}.`, "callbacks");
}
