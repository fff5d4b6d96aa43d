import { read_json } from "../loading/json.ts";
import { no_processor } from "../loading/missing_files.ts";
import type { ModelSource } from "../loading/types.ts";

/** Where transformers v5 may store a processor's settings instead, under "image_processor". */
const COMBINED_FILE = "processor_config.json";

/**
 * The settings of a source that lacks preprocessor_config.json, and where they come from.
 *
 * @throws VitMsnError NOT_FOUND where processor_config.json has none either.
 */
export async function read_combined_processor(
  source: ModelSource,
  missing_file: string,
): Promise<{ config: Record<string, unknown>; where: string }> {
  const combined = (await read_json(source, COMBINED_FILE))?.image_processor;
  if (typeof combined === "object" && combined !== null) {
    return { config: combined as Record<string, unknown>, where: `${source.name}: ${COMBINED_FILE}` };
  }
  throw await no_processor(source, missing_file);
}
