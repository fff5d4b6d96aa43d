import { createHash } from "node:crypto";
import type { Reached } from "./journal.ts";
import type { ListedImage } from "./listed_image.ts";
import type { Shard } from "./shard.ts";

/** An image of this shard, and the point after it. */
export interface Selected extends ListedImage {
  reached: Reached;
  /** Its row as stored by an earlier run. */
  stored?: Uint8Array;
}

/**
 * One shard's images, from where an earlier run stopped. All names are hashed on the way: at the point where the earlier run
 * stopped, the hash shows whether the sources are still the same.
 */
export class Selection {
  readonly #list: (is_wanted: () => boolean) => AsyncIterable<ListedImage>;
  readonly #shard: Shard;
  readonly #earlier: Reached | undefined;
  readonly #names = createHash("sha256");
  #position = 0;

  /** @param list lists all images, and asks before each whether it will be read. */
  constructor(
    list: (is_wanted: () => boolean) => AsyncIterable<ListedImage>,
    shard: Shard,
    earlier?: Reached,
  ) {
    this.#list = list;
    this.#shard = shard;
    this.#earlier = earlier;
  }

  /** The point after the last image yielded, and at the end the end of the sources. */
  get reached(): Reached {
    return { position: this.#position, names_sha256: this.#names.copy().digest("hex") };
  }

  /** @throws SourcesChanged if the images before the starting point aren't those of the earlier run. */
  async *images(): AsyncGenerator<Selected> {
    const { index, count } = this.#shard;
    const first = this.#earlier?.position ?? 0;
    const is_wanted = () => this.#position >= first && this.#position % count === index;
    for await (const image of this.#list(is_wanted)) {
      if (this.#position === first) this.#check();
      const is_selected = is_wanted();
      this.#position++;
      this.#names.update(image.name).update("\n");
      if (!is_selected) continue;
      const { reached } = this;
      yield { ...image, reached };
    }
    if (this.#position <= first) this.#check();
  }

  #check(): void {
    if (this.#earlier === undefined) return;
    const { position, names_sha256 } = this.reached;
    if (position < this.#earlier.position) throw new SourcesChanged(this.#earlier.position, position);
    if (names_sha256 !== this.#earlier.names_sha256) throw new SourcesChanged(this.#earlier.position);
  }
}

export class SourcesChanged extends Error {
  /** @param before the number of images processed by the earlier run. @param now how many there are, if they are fewer. */
  constructor(before: number, now?: number) {
    const images = `the first ${before} images of the sources`;
    super(now === undefined ? `${images} have changed` : `of ${images} only ${now} are left`);
  }
}
