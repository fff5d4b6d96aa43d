/** An instance of a class that extends Callable: an object that can be called like a function. */
export interface CallableInstance<Args extends unknown[], Result> {
  (...args: Args): Result;
  /** The function that a call of the instance runs. */
  _call(...args: Args): Result;
}

/**
 * Base of classes whose instances are called like functions, as in Python's `__call__` and in transformers.js:
 * the constructor returns a function that has the class's prototype and forwards to `_call`.
 */
export const Callable = class {
  constructor() {
    const self = (...args: unknown[]) =>
      (self as unknown as CallableInstance<unknown[], unknown>)._call(...args);
    // biome-ignore lint/correctness/noConstructorReturn: the function is the instance; derived fields land on it.
    return Object.setPrototypeOf(self, new.target.prototype);
  }
} as unknown as abstract new <Args extends unknown[], Result>() => CallableInstance<Args, Result>;
