// Loaded into every process of an unchanged test: appends the numbers of the mutants whose code runs to a file, each
// once. At once and not at the end, since some tests kill the programs that they start.
const { appendFileSync } = require("node:fs");

const file = /** @type {string} */ (process.env.MUTANT_COVERAGE);
// The first count of a mutant reaches the prototype; later ones find the object's own property, without delay.
const counts = Object.create(
  new Proxy(
    {},
    {
      get: () => 0,
      set(_, id, value, counts) {
        appendFileSync(file, `${String(id)}\n`);
        return Reflect.defineProperty(counts, id, { value, writable: true });
      },
    },
  ),
);
// The name under which Stryker's instrumented code counts.
Object.assign(globalThis, { __stryker__: { mutantCoverage: { static: counts, perTest: {} } } });
