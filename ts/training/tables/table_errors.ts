import { VitMsnError } from "../../errors.ts";

/** The longest cell or line: room for an image in a data: URL, as in the lists of embed and classify. */
export const MAX_CELL = 32 * 1024 * 1024;

/** @param place such as "line 3". */
export function bad_row(file: string, place: string, message: string, column?: string): VitMsnError {
  const where = column === undefined ? place : `${place}, column ${JSON.stringify(column)}`;
  return new VitMsnError("INVALID_ARGUMENT", `${file}, ${where}: ${message}.`, {
    details: { file, place, ...(column !== undefined && { column }) },
  });
}

export function bad_file(file: string, message: string, cause?: unknown): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", `${file} ${message}.`, { cause, details: { file } });
}
