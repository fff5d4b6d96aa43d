import type { ModelInfo } from "./worker/types.ts";

/** A picture in the strip. */
export interface Picture {
  id: number;
  name: string;
  blob: Blob;
  /** For <img>. */
  url: string;
}

/** A value that notifies its watchers of changes. */
export class State<T> {
  #value: T;
  readonly #listeners = new Set<(value: T) => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set value(value: T) {
    if (value === this.#value) return;
    this.#value = value;
    for (const listener of this.#listeners) listener(value);
  }

  /** Calls `listener` now and after each change. */
  watch(listener: (value: T) => void): void {
    this.#listeners.add(listener);
    listener(this.#value);
  }

  /** Calls `listener` after each change. */
  on_change(listener: (value: T) => void): void {
    this.#listeners.add(listener);
  }
}

/** What the parts of the page share. */
export const pictures = new State<readonly Picture[]>([]);
/** The picture on the stage. */
export const current = new State<Picture | undefined>(undefined);
/** The loaded model; undefined before the first one. */
export const model = new State<ModelInfo | undefined>(undefined);

let next_id = 0;

/** Puts pictures into the strip. */
export function add_pictures(blobs: readonly { name: string; blob: Blob }[]): Picture[] {
  const added = blobs.map(({ name, blob }) => ({
    id: next_id++,
    name,
    blob,
    url: URL.createObjectURL(blob),
  }));
  pictures.value = [...pictures.value, ...added];
  return added;
}

export function remove_picture(picture: Picture): void {
  const index = pictures.value.indexOf(picture);
  pictures.value = pictures.value.filter((other) => other !== picture);
  if (current.value === picture) current.value = pictures.value[Math.min(index, pictures.value.length - 1)];
  // Not at once: the strip or a class may still show it.
  setTimeout(() => URL.revokeObjectURL(picture.url), 60_000);
}
