import { describe, expect, test } from "vitest";
import { Pacer } from "../../ts/engine/pacer.ts";
import { expect_error } from "../support/errors.ts";

/** A promise, and what settles it. */
function deferred() {
  let resolve = () => {};
  let reject = (_: unknown) => {};
  const promise = new Promise<void>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Whether a promise is settled once the tasks that are due have run. */
async function is_settled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  const note = () => {
    settled = true;
  };
  promise.then(note, note);
  for (let i = 0; i < 3; i++) await new Promise((resolve) => setTimeout(resolve));
  return settled;
}

describe("an abort ends a computation", () => {
  test("before its first step", async () => {
    await expect_error(() => new Pacer(AbortSignal.abort(), "The work"), "ABORTED", /^The work was aborted/);
  });

  test("after each step on this thread, the last one included", async () => {
    const controller = new AbortController();
    const pacer = new Pacer(controller.signal, "The work");
    await pacer.step();
    controller.abort();
    await expect_error(pacer.step(), "ABORTED", /^The work was aborted/);
  });

  test("after a step that was done at once", async () => {
    const controller = new AbortController();
    const pacer = new Pacer(controller.signal, "The work");
    controller.abort();
    await expect_error(pacer.step(Promise.resolve()), "ABORTED", /^The work was aborted/);
  });

  test("while it waits for steps elsewhere", async () => {
    const controller = new AbortController();
    const pacer = new Pacer(controller.signal, "The work");
    const never = () => deferred().promise;
    await pacer.step(never());
    await pacer.step(never());
    const third = pacer.step(never());
    expect(await is_settled(third)).toBe(false);
    controller.abort();
    await expect_error(third, "ABORTED", /^The work was aborted/);
  });

  test("while it waits for the last steps", async () => {
    const controller = new AbortController();
    const pacer = new Pacer(controller.signal, "The work");
    await pacer.step(deferred().promise);
    const end = pacer.finish();
    controller.abort();
    await expect_error(end, "ABORTED", /^The work was aborted/);
  });
});

test("at most two steps elsewhere are under way, and the end waits for all", async () => {
  const pacer = new Pacer(undefined, "The work");
  const [first, second, third] = [deferred(), deferred(), deferred()];
  await pacer.step(first.promise);
  await pacer.step(second.promise);
  const stepping = pacer.step(third.promise);
  expect(await is_settled(stepping)).toBe(false);
  first.resolve();
  await stepping;
  const end = pacer.finish();
  second.resolve();
  expect(await is_settled(end)).toBe(false);
  third.resolve();
  await end;
});

test("a step's error arrives with a later step or at the end", async () => {
  const pacer = new Pacer(undefined, "The work");
  const failing = deferred();
  await pacer.step(failing.promise);
  failing.reject(new Error("broken"));
  await expect(pacer.finish()).rejects.toThrow("broken");
});

test("events get their turn during steps that last", async () => {
  const pacer = new Pacer(undefined, "The work");
  let is_heard = false;
  setTimeout(() => {
    is_heard = true;
  });
  // Busy for longer than a slice of 30 ms, in steps of 1 ms.
  for (let i = 0; i < 1000 && !is_heard; i++) {
    const end = performance.now() + 1;
    while (performance.now() < end);
    await pacer.step();
  }
  expect(is_heard).toBe(true);
});
