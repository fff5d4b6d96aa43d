import { createHash } from "node:crypto";
import { realpath, rm } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { VitMsnError } from "../../index.ts";

/**
 * Holds an output against a second run on this machine. The lock is a socket that this process listens at: it ends with
 * the process, however that ends.
 *
 * @returns what lets it go.
 * @throws VitMsnError IO where another process holds it.
 */
export async function lock(output: string): Promise<() => Promise<void>> {
  const path = await socket_path(output);
  const server = (await try_listen(path)) ?? (await take_over(path));
  if (server === undefined) {
    throw new VitMsnError("IO", `${output} is being written by another process; wait for it, or end it.`);
  }
  server.unref();
  return () => new Promise((resolve) => server.close(() => resolve()));
}

async function socket_path(output: string): Promise<string> {
  const real = join(await realpath(dirname(output)), basename(output));
  const name = `vit-msn-${createHash("sha256").update(real).digest("hex").slice(0, 24)}`;
  return process.platform === "win32" ? `\\\\?\\pipe\\${name}` : join(tmpdir(), `${name}.sock`);
}

/** A socket's file stays behind a process that was killed: then nobody answers. */
async function take_over(path: string): Promise<Server | undefined> {
  if (await answers(path)) return undefined;
  await rm(path, { force: true });
  return try_listen(path);
}

function try_listen(path: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("listening", () => resolve(server));
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(undefined) : reject(error),
    );
    server.listen(path);
  });
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
