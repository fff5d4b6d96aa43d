/**
 * vit-msn/similar: an index of images by their embeddings, for similar images and near duplicates.
 *
 * @module
 */
export * from "./similarity/image_index.ts";
