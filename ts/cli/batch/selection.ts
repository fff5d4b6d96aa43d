import { createHash } from "node:crypto";
import type { Reached } from "./journal.ts";
import type { Picture } from "./picture.ts";
import type { Shard } from "./shard.ts";

/** A picture of this shard's, and the point behind it. */
export interface Selected extends Picture {
  reached: Reached;
  /** The row that an earlier run made of it. */
  kept?: Uint8Array;
}

/**
 * One shard's pictures of a list, from where an earlier run stopped. All names are summed up on the way: where an
 * earlier run stopped, the sum tells whether the list is still the same.
 */
export class Selection {
  readonly #pictures: AsyncIterable<Picture>;
  readonly #shard: Shard;
  readonly #begun: Reached | undefined;
  readonly #names = createHash("sha256");
  #position = 0;

  constructor(pictures: AsyncIterable<Picture>, shard: Shard, begun?: Reached) {
    this.#pictures = pictures;
    this.#shard = shard;
    this.#begun = begun;
  }

  /** The point behind the picture that was given last, and at the end behind the last of all. */
  get reached(): Reached {
    return { position: this.#position, names_sha256: this.#names.copy().digest("hex") };
  }

  /** @throws SourcesChanged where the pictures that an earlier run passed are others now. */
  async *pictures(): AsyncGenerator<Selected> {
    const { index, count } = this.#shard;
    const first = this.#begun?.position ?? 0;
    for await (const picture of this.#pictures) {
      if (this.#position === first) this.#check();
      const is_selected = this.#position >= first && this.#position % count === index;
      this.#position++;
      this.#names.update(picture.name).update("\n");
      if (!is_selected) continue;
      const { reached } = this;
      yield { ...picture, reached };
    }
    if (this.#position <= first) this.#check();
  }

  #check(): void {
    if (this.#begun === undefined) return;
    const { position, names_sha256 } = this.reached;
    if (position < this.#begun.position) throw new SourcesChanged(this.#begun.position, position);
    if (names_sha256 !== this.#begun.names_sha256) throw new SourcesChanged(this.#begun.position);
  }
}

export class SourcesChanged extends Error {
  /** @param then how many pictures were passed, @param now how many there are, where they are fewer. */
  constructor(then: number, now?: number) {
    const pictures = `the first ${then} pictures of the sources`;
    super(now === undefined ? `${pictures} are others now` : `of ${pictures} only ${now} are left`);
  }
}
