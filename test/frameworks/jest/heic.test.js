import { readFile } from "node:fs/promises";
import { RawImage } from "vit-msn";

/** The mean of each channel. */
function means({ data, channels }) {
  const sums = new Array(channels).fill(0);
  data.forEach((value, i) => {
    sums[i % channels] += value;
  });
  return sums.map((sum) => (sum * channels) / data.length);
}

// The means are those that pillow-heif gives.
test.each([
  ["photo.heic", [124.83398, 117.42513, 123.90169]],
  ["transparent.heic", [124.83398, 117.42513, 123.90169, 238.39844]],
])("reads %s by the optional package libheif-js", async (name, expected) => {
  const image = await RawImage.read(name);
  expect(image.size).toEqual([48, 32]);
  means(image).forEach((mean, channel) => {
    expect(mean).toBeCloseTo(expected[channel], 4);
  });
});

test("a damaged or too large HEIC file is a typed error", async () => {
  const bytes = await readFile("photo.heic");
  const outcome = (work) => work.catch(({ code, message }) => `${code}: ${message}`);
  expect(await outcome(RawImage.read(bytes.subarray(0, 700)))).toMatch(
    /^INVALID_IMAGE: The image can't be decoded as HEIC: [^\n]+\.$/,
  );
  expect(await outcome(RawImage.read(bytes, { max_pixels: 1000 }))).toMatch(/^INVALID_IMAGE: .*48×32 pixels/);
  expect(await outcome(RawImage.read(bytes, { signal: AbortSignal.abort() }))).toMatch(/^ABORTED/);
  let seed = 1;
  const random = () => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    return seed / 0x7fffffff;
  };
  for (let i = 0; i < 300; i++) {
    const damaged = Uint8Array.from(bytes);
    for (let j = 0; j < 6; j++) damaged[Math.floor(random() * damaged.length)] = Math.floor(random() * 256);
    const found = await outcome(RawImage.read(damaged, { max_pixels: 1e6 }));
    if (typeof found === "string") expect(found).toMatch(/^(INVALID_IMAGE|UNSUPPORTED): /);
  }
}, 60_000);
