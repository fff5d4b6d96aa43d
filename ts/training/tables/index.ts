// What is imported on demand, when a list of images is opened.
export { images_of_tables } from "./image_table.ts";
export { open_table } from "./table.ts";
export { images_of_shards } from "./web_dataset.ts";
