/**
 * Base of classes whose instances are called like functions, as in Python's `__call__` and in transformers.js:
 * the constructor gives back a function that has the class's prototype and forwards to `_call`.
 */
export abstract class Callable<Args extends unknown[], Result> {
  constructor() {
    const self = (...args: Args): Result => (self as unknown as this)._call(...args);
    // biome-ignore lint/correctness/noConstructorReturn: the function is the instance; derived fields land on it.
    return Object.setPrototypeOf(self, new.target.prototype) as this;
  }

  abstract _call(...args: Args): Result;
}
