/** Whether tests are skipped: where they are, prints why, for which vitest's skipIf has no place. */
export function skipped(is_so: boolean, why: string): boolean {
  if (is_so) console.log(`Skipped: ${why}`);
  return is_so;
}
