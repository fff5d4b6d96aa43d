// The apps: what each installs, how it is built, and where its answers are.
import { readFile } from "node:fs/promises";

/**
 * @typedef {object} App
 * @property {string} folder in this folder; copied before anything runs.
 * @property {Record<string, string>} packages with their versions.
 * @property {string[][]} build commands, run by npx.
 * @property {string} images where the app's public files are, relative to it.
 * @property {string} [site] the folder that a static server serves, on an isolated page.
 * @property {string[]} [server] the command that starts the app's own server; PORT is set, and $PORT is replaced.
 * @property {string[]} pages whose title is an answer.
 * @property {string[]} [routes] whose JSON is an answer.
 * @property {boolean} [has_threads] whether pages must have threads in a Worker.
 * @property {Record<string, string>} [files] configuration, by name.
 */

/** @type {Omit<App, "packages" | "build" | "site">} */
const page = { folder: "page", images: ".", pages: ["/"], has_threads: true };

const bundler_html = '<!doctype html><title>loading</title><script type="module" src="main.js"></script>';
const webpack_config = `export default {
  mode: "production",
  entry: "./main.js",
  output: { filename: "main.js", module: true },
  experiments: { outputModule: true },
};
`;

/** @type {Readonly<Record<string, App>>} */
export const apps = {
  vite7: {
    ...page,
    packages: { vite: "7.3.8" },
    files: {
      "vite.config.js": 'export default { worker: { format: "es" }, build: { target: "es2022" } };\n',
    },
    build: [["vite", "build"]],
    site: "dist",
  },
  vite8: { ...page, packages: { vite: "8.4.0" }, build: [["vite", "build"]], site: "dist" },
  webpack: {
    ...page,
    packages: { webpack: "5.113.0", "webpack-cli": "7.3.1" },
    files: { "webpack.config.mjs": webpack_config, "dist/index.html": bundler_html },
    build: [["webpack", "--config", "webpack.config.mjs"]],
    site: "dist",
  },
  rspack: {
    ...page,
    packages: { "@rspack/core": "2.3.4", "@rspack/cli": "2.2.8" },
    files: { "rspack.config.mjs": webpack_config, "dist/index.html": bundler_html },
    build: [["rspack", "build"]],
    site: "dist",
  },
  next: {
    folder: "next",
    images: "public",
    packages: { next: "16.4.6", react: "19.3.1", "react-dom": "19.3.1" },
    build: [["next", "build"]],
    server: ["next", "start"],
    pages: ["/"],
    routes: ["/api/node"],
    has_threads: true,
  },
  parcel: {
    ...page,
    packages: { parcel: "2.16.4" },
    files: {
      "package.json": JSON.stringify({
        name: "app",
        private: true,
        "@parcel/resolver-default": { packageExports: true },
      }),
      "main.js": (await readFile(new URL("page/main.js", import.meta.url), "utf8")).replace(
        "undefined",
        '"/model"',
      ),
    },
    build: [["parcel", "build", "index.html"]],
    site: "dist",
  },
  wrangler: {
    folder: "wrangler",
    images: "public",
    // Newer ones need Node 22.
    packages: { wrangler: "4.86.0" },
    build: [["wrangler", "deploy", "--dry-run", "--outdir", "built"]],
    server: ["wrangler", "dev", "--ip", "127.0.0.1", "--port", "$PORT"],
    pages: [],
    routes: ["/api/classify"],
  },
  sveltekit: {
    folder: "sveltekit",
    images: "static",
    packages: {
      "@sveltejs/adapter-node": "5.5.7",
      "@sveltejs/kit": "2.70.4",
      "@sveltejs/vite-plugin-svelte": "7.3.1",
      svelte: "5.57.3",
      vite: "8.4.0",
    },
    build: [["vite", "build"]],
    server: ["node", "build"],
    pages: ["/"],
    routes: ["/api/node"],
  },
  jest: {
    folder: "jest",
    images: ".",
    packages: { jest: "30.5.2", "libheif-js": "1.23.2" },
    build: [["--node-options=--experimental-vm-modules", "jest"]],
    pages: [],
  },
};
