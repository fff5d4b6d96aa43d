import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { hold_output_folder } from "../../ts/training/folders/folders.web.ts";

describe("the folder of checkpoints is locked while a run writes into it", () => {
  let root: FileSystemDirectoryHandle;
  let name: string;
  beforeEach(async () => {
    root = await navigator.storage.getDirectory();
    name = `lock-${crypto.randomUUID()}`;
    await root.getDirectoryHandle(name, { create: true });
  });
  afterEach(() => root.removeEntry(name, { recursive: true }));

  /** A new handle, as each run gets one. */
  const handle = (below = name) => root.getDirectoryHandle(below, { create: true });

  test("a second run is refused until the first has ended, however it ends", async () => {
    let end: (error?: Error) => void = () => {};
    for (const error of [undefined, new Error("diverged")]) {
      const first = hold_output_folder(
        await handle(),
        undefined,
        () =>
          new Promise<string>((resolve, reject) => {
            end = () => (error === undefined ? resolve("done") : reject(error));
          }),
      );
      const ended = first.catch((reason: unknown) => reason);
      await expect(hold_output_folder(await handle(), undefined, async () => "second")).rejects.toMatchObject(
        {
          code: "IO",
          message: expect.stringMatching(new RegExp(`^${name} is already being written by another run`)),
        },
      );
      end();
      expect(await ended).toBe(error ?? "done");
      expect(await hold_output_folder(await handle(), undefined, async () => "second")).toBe("second");
    }
  });

  test("other folders, also of the same name elsewhere, aren't", async () => {
    const folder = await handle();
    const inner = await folder.getDirectoryHandle(name, { create: true });
    const result = await hold_output_folder(folder, undefined, () =>
      hold_output_folder(inner, undefined, async () => "both"),
    );
    expect(result).toBe("both");
  });

  test("a run that is aborted before it starts doesn't lock", async () => {
    const aborted = hold_output_folder(await handle(), AbortSignal.abort(), async () => "first");
    await expect(aborted).rejects.toMatchObject({ code: "ABORTED" });
    expect(await hold_output_folder(await handle(), undefined, async () => "second")).toBe("second");
  });
});
