// Builds the studio into a folder of static files: node examples/studio/build.mjs [FOLDER], default dist-studio/. The package
// itself (dist/) must have been built; its files are copied next to the page's, as any static host would serve them.
import { createHash } from "node:crypto";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join, relative, sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";
import sharp from "sharp";

const root = fileURLToPath(new URL("../../", import.meta.url));
const source = join(root, "examples/studio");
/** Sample images of each kind, in addition to the one that comes as a file. */
const SHEET_EACH = 15;
const SHEET_COLUMNS = 15;

/** @param {string} folder */
export async function build_studio(folder) {
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(folder, "samples"), { recursive: true });
  await Promise.all([bundle(folder), copy_package(folder), copy_page(folder), write_samples(folder)]);
  await write_service_worker(folder);
}

/** @type {import("esbuild").BuildOptions} */
const common = {
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  logLevel: "warning",
};

/** @param {string} folder */
async function bundle(folder) {
  const { exports } = JSON.parse(await readFile(join(root, "package.json"), "utf8"));
  await build({
    ...common,
    entryPoints: {
      main: join(source, "src/main.ts"),
      worker: join(source, "src/worker/main.ts"),
      style: join(source, "style.css"),
    },
    outdir: folder,
    loader: { ".woff2": "file" },
    assetNames: "[name]",
    plugins: [package_is_beside(exports)],
  });
}

/**
 * The package stays in separate files, next to the page: its engine looks for its WebAssembly and its Workers there.
 * @param {Record<string, { default: string }>} exports
 * @returns {import("esbuild").Plugin}
 */
function package_is_beside(exports) {
  return {
    name: "package-is-external",
    setup({ onResolve }) {
      onResolve({ filter: /^vit-msn(\/|$)/ }, ({ path }) => {
        const entry = exports[path.replace(/^vit-msn/, ".")];
        if (entry === undefined) return { errors: [{ text: `The package has no entry ${path}.` }] };
        return { path: entry.default.replace(/^\.\/dist\//, "./vit-msn/"), external: true };
      });
    },
  };
}

/** What a browser needs of dist/. @param {string} folder */
async function copy_package(folder) {
  await cp(join(root, "dist"), join(folder, "vit-msn"), {
    recursive: true,
    filter: (path) =>
      !/(\.node\.js|\.edge\.js|^static\.web\.js|^cli\.js|^types|\.d\.ts|^THIRD_PARTY_LICENSES\.txt)$/.test(
        basename(path),
      ),
  });
  // Not the package's own model, which sees images as 4×4 patches: with 7×7 there is more to see of where one looks.
  for (const file of ["config.json", "model.safetensors", "preprocessor_config.json"])
    await cp(join(root, "models/fashion", file), join(folder, "vit-msn/models/fashion", file));
}

/** @param {string} folder */
async function copy_page(folder) {
  for (const file of ["index.html", "icon.svg", "manifest.webmanifest"])
    await cp(join(source, file), join(folder, file));
  const licence = await readFile(join(root, "node_modules/@fontsource-variable/geist/LICENSE"), "utf8");
  const fflate = await readFile(join(root, "node_modules/fflate/LICENSE"), "utf8");
  await writeFile(join(folder, "licences.txt"), `Geist, the typeface\n\n${licence}\n\nfflate\n\n${fflate}`);
}

/** One image of each kind, and a sheet of more; from the bundled model's folder. @param {string} folder */
async function write_samples(folder) {
  const model = join(root, "models/fashion");
  const { id2label } = JSON.parse(await readFile(join(model, "config.json"), "utf8"));
  const files = (await readdir(join(model, "pictures"))).sort(
    (a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10),
  );
  for (const file of files) await cp(join(model, "pictures", file), join(folder, "samples", file));
  const singles = files.map((file) => ({ name: id2label[Number.parseInt(file, 10)], file }));
  const { pixels, labels, side } = await sheet_images(join(model, "test1000.safetensors"));
  const rows = Math.ceil(labels.length / SHEET_COLUMNS);
  const sheet = Buffer.alloc(rows * side * SHEET_COLUMNS * side);
  for (const [i, image] of pixels.entries()) {
    const [left, top] = [(i % SHEET_COLUMNS) * side, Math.floor(i / SHEET_COLUMNS) * side];
    for (let y = 0; y < side; y++) {
      sheet.set(image.subarray(y * side, (y + 1) * side), (top + y) * SHEET_COLUMNS * side + left);
    }
  }
  const raw = { width: SHEET_COLUMNS * side, height: rows * side, channels: /** @type {const} */ (1) };
  await sharp(sheet, { raw }).png({ compressionLevel: 9 }).toFile(join(folder, "samples/sheet.png"));
  const names = labels.map((label) => id2label[label]);
  const list = { singles, sheet: { file: "sheet.png", side, columns: SHEET_COLUMNS, labels: names } };
  await writeFile(join(folder, "samples/samples.json"), JSON.stringify(list));
}

/** The first images of each kind, kind by kind. @param {string} path */
async function sheet_images(path) {
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.subarray(8, start).toString());
  /** @param {string} key */
  const tensor = (key) =>
    bytes.subarray(start + header[key].data_offsets[0], start + header[key].data_offsets[1]);
  const [count, side] = header.pictures.shape;
  const all = Array.from({ length: count }, (_, i) => tensor("labels").readInt32LE(4 * i));
  const kinds = [...new Set(all)].sort((a, b) => a - b);
  const chosen = kinds.flatMap((kind) =>
    all.flatMap((label, i) => (label === kind ? [i] : [])).slice(0, SHEET_EACH),
  );
  const pixels = chosen.map((i) => tensor("pictures").subarray(i * side * side, (i + 1) * side * side));
  return { pixels, labels: chosen.map((i) => /** @type {number} */ (all[i])), side };
}

/** Knows all files, so it is written last. @param {string} folder */
async function write_service_worker(folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const files = paths.map((path) => relative(folder, path).split(sep).join("/")).sort();
  const hash = createHash("sha256");
  for (const file of files) hash.update(file).update(await readFile(join(folder, file)));
  await build({
    ...common,
    format: "iife",
    entryPoints: { service_worker: join(source, "src/service_worker.ts") },
    outdir: folder,
    define: { FILES: JSON.stringify(files), VERSION: JSON.stringify(hash.digest("hex").slice(0, 16)) },
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const folder = process.argv[2] ?? join(root, "dist-studio");
  await build_studio(folder);
  console.log(`The studio is in ${relative(process.cwd(), folder) || "."}: static files for any host.`);
}
