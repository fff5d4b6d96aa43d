/** The wide engine, or why it isn't used; neither where it isn't wanted. */
export interface WideChoice {
  readonly module?: WebAssembly.Module;
  readonly not_wide?: readonly string[];
}
