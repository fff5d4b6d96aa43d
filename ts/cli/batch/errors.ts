import { type ErrorCode, VitMsnError } from "../../index.ts";

/** Errors of the run rather than of one image: continuing with the next image would only hide them. */
const FATAL: ReadonlySet<ErrorCode> = new Set(["ABORTED", "ENGINE_DEAD", "OUT_OF_MEMORY", "DISPOSED"]);

/** Whether the error concerns one image only, so that the run can continue with the others. */
export function is_image_error(error: unknown): error is VitMsnError {
  return error instanceof VitMsnError && !FATAL.has(error.code);
}

/** Turns a file system's error into a VitMsnError. */
export function file_error(cause: unknown, path: string): VitMsnError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const options = { cause, details: { file: path } };
  if (code === "ENOENT" || code === "ENOTDIR")
    return new VitMsnError("NOT_FOUND", `There is no file or folder ${path}; check the path.`, options);
  return new VitMsnError("IO", `${path} can't be read: ${message}.`, options);
}

export function aborted(signal: AbortSignal): VitMsnError {
  return new VitMsnError("ABORTED", "The run was interrupted.", { cause: signal.reason });
}
