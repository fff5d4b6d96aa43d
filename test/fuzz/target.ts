import { env } from "../../ts/env.ts";
import { VitMsnError } from "../../ts/errors.ts";

/** A parser of untrusted bytes, as the fuzzer calls it. */
export interface FuzzTarget {
  /** Must return, or reject with a VitMsnError, for every input. */
  fuzz(bytes: Uint8Array): void | Promise<void>;
  /** Tokens of the format, which mutations insert. */
  dictionary?: readonly (string | Uint8Array)[];
}

/** A target in the program that the fuzzer instruments; it holds the program's own copy of VitMsnError. */
export interface LoadedTarget {
  run(bytes: Uint8Array): Promise<void>;
  dictionary: readonly (string | Uint8Array)[];
}

const MAX_MESSAGE = 4000;

env.warn = () => {}; // thousands of inputs are worth a warning

/** Runs a target on one input. @throws what the target threw, if that is no proper refusal. */
export async function run_target({ fuzz }: FuzzTarget, bytes: Uint8Array): Promise<void> {
  try {
    await fuzz(bytes);
  } catch (error) {
    if (!(error instanceof VitMsnError)) throw error;
    if (error.message.length > MAX_MESSAGE)
      throw new Error(`The message has ${error.message.length} characters.`, { cause: error });
  }
}
