/** An instance of a class on Callable: an object of its class that is called like a function. */
export interface CallableInstance<Args extends unknown[], Result> {
  (...args: Args): Result;
  /** What calling the instance does. */
  _call(...args: Args): Result;
}

/**
 * Base of classes whose instances are called like functions, as in Python's `__call__` and in transformers.js:
 * the constructor gives back a function that has the class's prototype and forwards to `_call`.
 */
export const Callable = class {
  constructor() {
    const self = (...args: unknown[]) =>
      (self as unknown as CallableInstance<unknown[], unknown>)._call(...args);
    // biome-ignore lint/correctness/noConstructorReturn: the function is the instance; derived fields land on it.
    return Object.setPrototypeOf(self, new.target.prototype);
  }
} as unknown as abstract new <Args extends unknown[], Result>() => CallableInstance<Args, Result>;
