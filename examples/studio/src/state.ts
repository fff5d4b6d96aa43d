import type { ModelInfo } from "./worker/types.ts";

/** An image in the strip. */
export interface StudioImage {
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
export const images = new State<readonly StudioImage[]>([]);
/** The image on the stage. */
export const current = new State<StudioImage | undefined>(undefined);
/** The loaded model; undefined before the first one. */
export const model = new State<ModelInfo | undefined>(undefined);

let next_id = 0;

/** Puts images into the strip. */
export function add_images(blobs: readonly { name: string; blob: Blob }[]): StudioImage[] {
  const added = blobs.map(({ name, blob }) => ({
    id: next_id++,
    name,
    blob,
    url: URL.createObjectURL(blob),
  }));
  images.value = [...images.value, ...added];
  return added;
}

export function remove_image(image: StudioImage): void {
  const index = images.value.indexOf(image);
  images.value = images.value.filter((other) => other !== image);
  if (current.value === image) current.value = images.value[Math.min(index, images.value.length - 1)];
  // Not at once: the strip or a class may still show it.
  setTimeout(() => URL.revokeObjectURL(image.url), 60_000);
}
