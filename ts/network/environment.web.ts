/** The hub's address. */
export const default_host = "https://huggingface.co";

/** The environment variable that forbids the network; undefined if none does. */
export const offline_variable: string | undefined = undefined;

/** The hub token from the environment. */
export function default_token(): string | undefined {
  return undefined;
}

/** The runtime's fetch. */
export const default_fetch: typeof fetch = (input, init) => globalThis.fetch(input, init);

/** Advice for a host that can't be reached, for the end of a message. */
export function failure_hint(_address: string | URL, _error: unknown): string {
  return "";
}

/** Why the process can't have another WebAssembly memory, if known. */
export function address_space_hint(): string | undefined {
  return undefined;
}

/** Browsers' errors don't repeat a header's value. */
export function check_header(_name: string, _value: string): void {}
