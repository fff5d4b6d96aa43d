import { memory_file } from "../../../ts/loading/bytes.ts";
import { images_of_shards } from "../../../ts/training/tables/web_dataset.ts";

import { with_sums } from "./tar.ts";

export { dictionary } from "./tar.ts";

export async function fuzz(bytes: Uint8Array): Promise<void> {
  const shard = { name: "a.tar", open: async () => memory_file("a.tar", with_sums(bytes)) };
  const { examples } = await images_of_shards([shard], {});
  for (const { image } of examples.slice(0, 20))
    if (typeof image === "object" && "read" in image) await image.read();
}
