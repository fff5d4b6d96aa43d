import { type ErrorCode, VitMsnError } from "../errors.ts";

const STATUS_CODES: Record<number, ErrorCode> = {
  401: "ACCESS_DENIED",
  403: "ACCESS_DENIED",
  404: "NOT_FOUND",
  410: "NOT_FOUND",
};

/** The error of an image or shard whose server answered with a status that isn't a success. */
export function status_error(name: string, response: Response): VitMsnError {
  const { status, statusText } = response;
  const answer = `${status} ${statusText}`.trim();
  return new VitMsnError(
    STATUS_CODES[status] ?? "NETWORK",
    `${name} can't be fetched: the server answered ${answer}. Check the address.`,
    {
      details: { file: name, status, retry_after: response.headers.get("retry-after") ?? undefined },
    },
  );
}
