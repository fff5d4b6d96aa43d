import { add_images, images, type StudioImage } from "./state.ts";
import { h } from "./ui/dom.ts";

/** Images that come with the page: one of each kind as files, and a sheet of more. */
interface SampleList {
  singles: { name: string; file: string }[];
  sheet: { file: string; side: number; columns: number; labels: string[] };
}

const here = (path: string) => new URL(`./samples/${path}`, import.meta.url);

async function get(path: string): Promise<Response> {
  const response = await fetch(here(path));
  if (!response.ok)
    throw new Error(`The sample pictures can't be read: ${path} answered ${response.status}.`);
  return response;
}

let listed: Promise<SampleList> | undefined;
const list = () => {
  listed ??= get("samples.json").then((response) => response.json() as Promise<SampleList>);
  return listed;
};

/** One image of each kind, into the strip. */
export async function add_samples(): Promise<StudioImage[]> {
  const { singles } = await list();
  const blobs = await Promise.all(
    singles.map(async ({ name, file }) => ({ name, blob: await (await get(file)).blob() })),
  );
  return add_images(blobs);
}

const used = new Set<number>();

/** Images from the sheet that weren't used yet, by label. */
export async function add_sample_classes(
  labels: readonly string[],
  each: number,
): Promise<{ label: string; images: StudioImage[] }[]> {
  const { sheet } = await list();
  const image = await createImageBitmap(await (await get(sheet.file)).blob());
  return Promise.all(
    labels.map(async (label) => {
      const places = sheet.labels
        .flatMap((name, i) => (name === label && !used.has(i) ? [i] : []))
        .slice(0, each);
      for (const place of places) used.add(place);
      const blobs = await Promise.all(
        places.map(async (place, i) => ({ name: `${label} ${i + 1}`, blob: await cut(image, place, sheet) })),
      );
      return { label, images: add_images(blobs) };
    }),
  );
}

/** Adds more of every kind to the strip; returns how many were added. */
export async function add_more_samples(each: number): Promise<number> {
  const before = images.value.length;
  const { sheet } = await list();
  await add_sample_classes([...new Set(sheet.labels)], each);
  return images.value.length - before;
}

function cut(image: ImageBitmap, place: number, { side, columns }: SampleList["sheet"]): Promise<Blob> {
  const canvas = h("canvas", { width: side, height: side });
  const [x, y] = [(place % columns) * side, Math.floor(place / columns) * side];
  canvas.getContext("2d")?.drawImage(image, x, y, side, side, 0, 0, side, side);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob as Blob), "image/png"));
}
