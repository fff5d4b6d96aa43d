/** Whether a value is a whole number from 0 up: a count, a length or an id. */
export function is_count(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
