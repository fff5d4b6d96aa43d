import { env } from "vit-msn";

/** What `action` returns, and what the package warned of while it ran. */
export async function with_warnings<T>(action: () => Promise<T>): Promise<{ result: T; warnings: string[] }> {
  const { warn } = env;
  const warnings: string[] = [];
  env.warn = (message) => warnings.push(message);
  try {
    return { result: await action(), warnings };
  } finally {
    env.warn = warn;
  }
}
