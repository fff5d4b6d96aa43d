import { VitMsnError } from "./errors.ts";

/**
 * Imports a part of this package that few programs need, so that the others don't download it.
 * @param what the part, for the message.
 * @throws VitMsnError IO if it can't be loaded, with what to do about it.
 */
export async function on_demand<T>(what: string, part: () => Promise<T>): Promise<T> {
  try {
    return await part();
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    throw new VitMsnError(
      "IO",
      `vit-msn's ${what} can't be loaded (${String(cause)}). Serve its file with the package's others; in a service ` +
        'worker, which can\'t import later, import "vit-msn/static".',
      { cause },
    );
  }
}
