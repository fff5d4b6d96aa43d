import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { transform } from "esbuild";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import {
  ENGINES,
  type Engine,
  start_browser,
  type TestBrowser,
  type TestPage,
  text_of,
  with_page,
} from "../support/browsers/browsers.ts";
import { bun, deno } from "../support/runtimes.ts";
import { skipped } from "../support/skips.ts";
import { SnippetProject } from "../support/snippet_project.ts";
import { read_snippets, type Snippet } from "../support/snippets.ts";

// All code of README and the guides runs, in the runtime that its block names: Node, or what stands behind the language. Code for
// browsers runs in each of them.
// Blocks of shell commands that begin with ./build.sh are for a clone of the repository, and don't run here.

const execute = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
const guides = (await readdir(join(root, "docs/guides"))).filter((name) => name.endsWith(".md")).sort();
const files = ["README.md", ...guides.map((name) => `docs/guides/${name}`)];
const snippets = new Map(
  await Promise.all(
    files.map(async (file) => {
      const all = await read_snippets(join(root, file));
      return [file, all.filter(({ text }) => !text.startsWith("./build.sh"))] as const;
    }),
  ),
);
const with_code = files.filter((file) => snippets.get(file)?.length);

/** Each is started for the first test that needs it. */
const browsers = new Map<Engine, Promise<TestBrowser>>();
afterAll(async () => {
  for (const browser of browsers.values()) await (await browser).close();
});

describe.each(with_code)("%s", (file) => {
  let project: SnippetProject;
  beforeAll(async () => {
    project = await SnippetProject.make();
  });
  afterAll(() => project.remove());

  for (const snippet of snippets.get(file) ?? []) {
    const { line, language, where } = snippet;
    if (language === "html" || where === "browser") {
      const open = language === "html" ? open_page : run_in_page;
      for (const engine of ENGINES)
        test(`line ${line}: ${language} in ${engine}`, ({ skip }) => open(engine, snippet, project, skip));
      continue;
    }
    const needs_gpu = where === "webgpu" && !inject("require_gpu");
    test.skipIf(skipped(needs_gpu, "no software GPU was installed for the examples on WebGPU"))(
      `line ${line}: ${language} ${where}`,
      () => run(snippet, project),
    );
  }
});

test.each(guides.filter((name) => name !== "index.md"))(
  "%s has a title for the site's menu",
  async (name) => {
    const text = await readFile(join(root, "docs/guides", name), "utf8");
    expect(text).toMatch(/^---\ntitle: .+\n---\n\n# /);
  },
);

test("TypeScript finds no fault in the code", async () => {
  const folder = await mkdtemp(join(tmpdir(), "vit-msn-docs-types-"));
  try {
    await mkdir(join(folder, "node_modules"));
    await symlink(root, join(folder, "node_modules/vit-msn"), "junction");
    await writeFile(join(folder, "package.json"), '{ "type": "module" }');
    const compilerOptions = {
      ...{ strict: true, noEmit: true, target: "es2022", module: "nodenext", lib: ["es2023", "dom"] },
      ...{ types: ["node"], typeRoots: [join(root, "node_modules/@types")] },
    };
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.ts"] }));
    for (const [file, blocks] of snippets) {
      for (const { line, text } of blocks.filter(({ language }) => language === "ts"))
        await writeFile(join(folder, `${basename(file, ".md")}-${line}.ts`), in_node(text));
    }
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const { stdout } = await execute(process.execPath, [tsc, "-p", folder]).catch((error) => error);
    expect(stdout).toBe("");
  } finally {
    await rm(folder, { recursive: true });
  }
});

async function run(snippet: Snippet, project: SnippetProject): Promise<void> {
  const { language, where, text } = snippet;
  // An example has a test of its own; here it only has to be the same.
  if (where.startsWith("examples/")) return expect(text).toBe(await readFile(join(root, where), "utf8"));
  if (language === "sh") return run_commands(snippet, project);
  expect(["ts", "js"], "a language that the tests can run").toContain(language);
  await run_program(snippet, project);
}

/** A module that runs after the settings. */
async function module_of({ text }: Snippet): Promise<string> {
  const { code } = await transform(text, { loader: "ts", format: "esm", target: "es2022" });
  return `import "./settings.mjs";\n${in_node(code)}`;
}

/** Deno's names of packages as others write them. */
function in_node(code: string): string {
  return code.replaceAll('"npm:vit-msn', '"vit-msn');
}

async function run_program(snippet: Snippet, { folder, variables }: SnippetProject): Promise<void> {
  const file = `snippet-${snippet.line}.mjs`;
  await writeFile(join(folder, file), await module_of(snippet));
  const runtimes = { deno: () => deno("--allow-net", "--allow-write"), bun };
  const { where } = snippet;
  if (where === "deno" || where === "bun") {
    await (await runtimes[where]()).run(file, [], folder);
  } else {
    expect(["", "webgpu"], "a runtime that the tests can start").toContain(where);
    await execute(process.execPath, [file], { cwd: folder, env: variables });
  }
}

/** As a shell would; the package is installed already, and servers run until the file's last block. */
async function run_commands({ text }: Snippet, project: SnippetProject): Promise<void> {
  const { folder, variables } = project;
  const commands = text.replaceAll(/^npm install (vit-msn|webgpu)$/gm, "true");
  const servers = [...commands.matchAll(/^npx vit-msn (serve .*)$/gm)];
  for (const [, command] of servers) await project.serve((command as string).split(" "));
  const others = commands
    .replaceAll(/^npx vit-msn serve .*$/gm, "true")
    .replaceAll("npx ", "npx --no-install ")
    .replaceAll("http://127.0.0.1:8080", project.server_origin);
  await execute("bash", ["-euo", "pipefail", "-c", others], { cwd: folder, env: variables });
}

/** The first script of a page: what it collects, nobody caught. */
const COLLECT_FAULTS = `<script>
globalThis.faults = [];
addEventListener("error", ({ message }) => faults.push(message));
addEventListener("unhandledrejection", ({ reason }) => faults.push(String(reason)));
</script>`;

async function run_in_page(
  engine: Engine,
  snippet: Snippet,
  project: SnippetProject,
  skip: (why: string) => void,
): Promise<void> {
  const file = `snippet-${snippet.line}.js`;
  await writeFile(join(project.folder, file), await module_of(snippet));
  const dist = "/node_modules/vit-msn/dist";
  const map = {
    imports: { "vit-msn": `${dist}/index.web.js`, "vit-msn/training": `${dist}/training.web.js` },
  };
  const html = `<!doctype html><script type="importmap">${JSON.stringify(map)}</script>`;
  await in_page(engine, html, project, async (page) => {
    const stores_files = await page.run<boolean>("return Boolean(navigator.storage?.getDirectory)");
    if (!stores_files && snippet.text.includes("storage.getDirectory"))
      return skip("this browser's pages have no private file system");
    await page.run("await import(arg)", `/${file}`);
  });
}

/** A page that takes an image and tells what it is. */
async function open_page(engine: Engine, { text }: Snippet, project: SnippetProject): Promise<void> {
  await in_page(engine, text, project, async (page) => {
    const takes_images = () => page.run("return Boolean(document.querySelector('input')?.onchange)");
    await expect.poll(takes_images, { timeout: 120_000 }).toBe(true);
    await page.choose_files("input", join(project.folder, "boot.png"));
    await expect.poll(() => text_of(page, "output"), { timeout: 120_000 }).toBe("Ankle boot");
  });
}

async function in_page(
  engine: Engine,
  html: string,
  project: SnippetProject,
  use: (page: TestPage) => Promise<void>,
): Promise<void> {
  await writeFile(join(project.folder, "page.html"), html.replace("<!doctype html>", `$&${COLLECT_FAULTS}`));
  if (!browsers.has(engine)) browsers.set(engine, start_browser(engine));
  const browser = (await browsers.get(engine)) as TestBrowser;
  await with_page(browser, `${project.origin}/page.html`, async (page) => {
    await use(page);
    expect(await page.run("return faults")).toEqual([]);
  });
}
