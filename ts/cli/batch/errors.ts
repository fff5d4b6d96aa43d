import { type ErrorCode, VitMsnError } from "../../index.ts";

/** Faults of the run rather than of one picture: going on with the next one would only hide them. */
const FATAL: ReadonlySet<ErrorCode> = new Set(["ABORTED", "ENGINE_DEAD", "OUT_OF_MEMORY", "DISPOSED"]);

/** Whether the picture is to blame, so that the others can go on. */
export function is_picture_error(error: unknown): error is VitMsnError {
  return error instanceof VitMsnError && !FATAL.has(error.code);
}

/** A file system's error as ours. */
export function file_error(cause: unknown, path: string): VitMsnError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const options = { cause, details: { file: path } };
  if (code === "ENOENT" || code === "ENOTDIR")
    return new VitMsnError("NOT_FOUND", `There is no file or folder ${path}; check the path.`, options);
  return new VitMsnError("IO", `${path} can't be read: ${message}.`, options);
}

/** Ends with ABORTED when the signal fires, else after `ms`. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const on_abort = () => {
      clearTimeout(timer);
      reject(aborted(signal));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", on_abort);
      resolve();
    }, ms);
    if (signal.aborted) on_abort();
    else signal.addEventListener("abort", on_abort, { once: true });
  });
}

export function aborted(signal: AbortSignal): VitMsnError {
  return new VitMsnError("ABORTED", "The run was interrupted.", { cause: signal.reason });
}
