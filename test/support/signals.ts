/** A signal, and how often it was looked at. */
export interface WatchedSignal {
  signal: AbortSignal;
  looks(): number;
}

/**
 * A signal that does something when it is looked at for the n-th time. Long work looks at its signal between steps, so this
 * aborts or disposes in the middle of it: at the same step on every machine.
 */
export function at_look(look: number, act: (controller: AbortController) => void): WatchedSignal {
  const controller = new AbortController();
  const { signal } = controller;
  let looks = 0;
  let aborted = false;
  signal.addEventListener("abort", () => {
    aborted = true;
  });
  Object.defineProperty(signal, "aborted", {
    get() {
      if (++looks === look) act(controller);
      return aborted;
    },
  });
  return { signal, looks: () => looks };
}

/** A signal that fires when it is looked at for the n-th time. */
export const abort_at_look = (look: number): WatchedSignal =>
  at_look(look, (controller) => controller.abort());
