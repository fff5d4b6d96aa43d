/** The hub's address. */
export const default_host = "https://huggingface.co";

/** The environment variable that forbids the network; undefined where none does. */
export const offline_variable: string | undefined = undefined;

/** The hub token that the environment gives. */
export function default_token(): string | undefined {
  return undefined;
}

/** The runtime's fetch. */
export const default_fetch: typeof fetch = (input, init) => globalThis.fetch(input, init);

/** What may help where a host can't be reached, for the end of a message. */
export function failure_hint(_address: string | URL, _error: unknown): string {
  return "";
}

/** What keeps the process from another WebAssembly memory, where that can be told. */
export function address_space_hint(): string | undefined {
  return undefined;
}

/** Browsers' own errors don't repeat a header's value. */
export function check_header(_name: string, _value: string): void {}
