import { s } from "./dom.ts";

/** Outlines in a square of 24, drawn with the text's colour. */
const PATHS = {
  recognise:
    "M4 7V5a1 1 0 0 1 1-1h2M17 4h2a1 1 0 0 1 1 1v2M20 17v2a1 1 0 0 1-1 1h-2M7 20H5a1 1 0 0 1-1-1v-2M8.5 12.5l2.5 2.5 4.5-5.5",
  attention:
    "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12Z M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6Z",
  features: "M4 4h7v7H4z M13 4h7v7h-7z M4 13h7v7H4z M16.5 13v7 M13 16.5h7",
  masking:
    "M4 4h5.3v5.3H4z M14.7 4H20v5.3h-5.3z M9.3 9.3h5.4v5.4H9.3z M4 14.7h5.3V20H4z M14.7 14.7H20V20h-5.3z",
  teach:
    "M12 4 2.5 8.5 12 13l9.5-4.5L12 4Z M6.5 10.5V16c1.6 1.6 3.4 2.3 5.5 2.3s3.9-.7 5.5-2.3v-5.5 M21.5 8.5V14",
  pretrain: "M3.5 19.5h17 M4.5 6c1.5 6.5 4 9.7 15.5 10.5 M15 4.5l3.5 3.5L22 4.5 M18.500 8V3",
  engine:
    "M7 7h10v10H7z M10 3.500v3.500 M14 3.500v3.500 M10 17v3.500 M14 17v3.500 M3.500 10H7 M3.500 14H7 M17 10h3.500 M17 14h3.500",
  add: "M12 5v14 M5 12h14",
  camera:
    "M4 8h3.500l1.500-2.500h6L16.500 8H20a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1Z M12 10.500a3 3 0 1 0 0 6 3 3 0 0 0 0-6Z",
  paste: "M9 4.500h6v3H9z M9 6H6.500a1 1 0 0 0-1 1v12.500a1 1 0 0 0 1 1h11a1 1 0 0 0 1-1V7a1 1 0 0 0-1-1H15",
  close: "M6 6l12 12 M18 6 6 18",
  download: "M12 4v11 M7.500 11 12 15.500 16.500 11 M4.500 19.500h15",
  upload: "M12 15.500v-11 M7.500 9 12 4.500 16.500 9 M4.500 19.500h15",
  shuffle:
    "M3.500 7h3.200c3.800 0 5.800 10 9.600 10h4.200 M3.500 17h3.200c1.500 0 2.700-1.600 3.700-3.500 M13 10.300c.9-1.900 1.900-3.300 3.300-3.300h4.200 M18 4.500 20.500 7 18 9.500 M18 14.500l2.500 2.500-2.500 2.500",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z M12 2.500v2 M12 19.500v2 M2.500 12h2 M19.500 12h2 M5.300 5.300l1.400 1.400 M17.300 17.300l1.400 1.400 M5.300 18.700l1.400-1.400 M17.300 6.700l1.400-1.400",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500Z",
  gauge: "M4 17a8.500 8.500 0 1 1 16 0 M12 15l4-5",
  stop: "M7 7h10v10H7z",
  play: "M8 5.500v13l10.500-6.500z",
  trash: "M5 7h14 M9.500 7V4.500h5V7 M7 7l.8 12.500h8.400L17 7",
} as const;

export type IconName = keyof typeof PATHS;

/** An icon; always next to text or inside something with a label, so it has no label itself. */
export function icon(name: IconName): SVGElement {
  return s(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    s("path", { d: PATHS[name] }),
  );
}
