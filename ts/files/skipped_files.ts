/** The number of kinds that a summary names; the others are summed up. */
const MAX_KINDS = 10;
/** The longest suffix that counts as an extension. */
const MAX_EXTENSION = 16;

/** Counts what is skipped in folders, lists and archives by kind, so that nothing is skipped silently. */
export class SkippedFiles {
  /** Files that aren't images by extension. */
  readonly #files = new Map<string, number>();
  /** Numbers of other things, by kind. */
  readonly #counted = new Map<string, number>();
  /** Paths, by kind. */
  readonly #named = new Map<string, string[]>();

  /** @param name of a file that isn't an image. */
  add(name: string): void {
    add_to(this.#files, extension_of(name));
  }

  /** Counts a file that isn't an image; a broken link, which may have led to a folder of images, is named. */
  add_file({ path, file, is_broken }: { path: readonly string[]; file: unknown; is_broken: boolean }): void {
    if (is_broken) this.add_named("broken links", String(file));
    else this.add(path.at(-1) as string);
  }

  /** Counts a thing. @param kind what it is, in the plural. */
  count(kind: string): void {
    add_to(this.#counted, kind);
  }

  /** Adds the counts of another instance. */
  add_all(other: SkippedFiles): void {
    for (const [extension, count] of other.#files) add_to(this.#files, extension, count);
    for (const [what, count] of other.#counted) add_to(this.#counted, what, count);
    for (const [what, paths] of other.#named) for (const path of paths) this.add_named(what, path);
  }

  /** Counts a thing that the summary names by its path. @param kind what it is, in the plural. */
  add_named(kind: string, path: string): void {
    const paths = this.#named.get(kind) ?? [];
    paths.push(path);
    this.#named.set(kind, paths);
  }

  /** "skipped 12 files that are not images: .heic 10, .txt 2"; undefined if nothing was skipped. */
  summary(): string | undefined {
    const named = [...this.#named].map(([what, paths]) => summary_of(what, paths));
    const counted = [...this.#counted].map(([what, count]) => `skipped ${what} (${count})`);
    const parts = [this.#files_summary(), ...counted, ...named].filter((part) => part !== undefined);
    return parts.length === 0 ? undefined : parts.join("; ");
  }

  #files_summary(): string | undefined {
    const kinds = [...this.#files].sort((a, b) => b[1] - a[1]);
    const sum = (some: typeof kinds) => some.reduce((total, [, count]) => total + count, 0);
    if (kinds.length === 0) return undefined;
    const named = kinds.slice(0, MAX_KINDS).map(([kind, count]) => `${kind} ${count}`);
    const others = sum(kinds.slice(MAX_KINDS));
    if (others > 0) named.push(`others ${others}`);
    const total = sum(kinds);
    const what = total === 1 ? "1 file that is not an image" : `${total} files that are not images`;
    return `skipped ${what}: ${named.join(", ")}`;
  }
}

function add_to(counts: Map<string, number>, kind: string, count = 1): void {
  counts.set(kind, (counts.get(kind) ?? 0) + count);
}

function summary_of(what: string, paths: readonly string[]): string {
  const others = paths.length > MAX_KINDS ? ` and ${paths.length - MAX_KINDS} more` : "";
  return `skipped ${what} (${paths.length}): ${paths.slice(0, MAX_KINDS).join(", ")}${others}`;
}

function extension_of(name: string): string {
  const extension = /[^/\\](\.[^./\\ ]+)$/.exec(name)?.[1];
  return extension === undefined || extension.length > MAX_EXTENSION
    ? "without extension"
    : extension.toLowerCase();
}
