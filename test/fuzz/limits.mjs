/** The longest input: longer ones cost time and reach nothing new. JavaScript, since run.mjs runs unbundled. */
export const MAX_INPUT_BYTES = 1 << 16;
