/**
 * An address for messages and logs: without user, password, query and fragment, which may be secrets. A data: URL is
 * cut; text that isn't a URL (a path, "org/name") is returned unchanged.
 */
export function show_url(address: string | URL): string {
  const text = String(address);
  if (/^data:/i.test(text)) return `${text.slice(0, 24)}… (a data: URL)`;
  if (!/^(?:https?:|[a-z][a-z0-9+.-]+:\/)/i.test(text)) return text;
  // An unencoded password may contain / ? #, so all text before the last @ is removed if the URL isn't valid.
  if (!URL.canParse(text)) return without_query(text.replace(/^([^:]*:\/*).*@/s, "$1***@"));
  const url = new URL(text);
  if (url.username === "" && url.password === "") return without_query(text);
  url.username = url.password = "";
  return without_query(url.href);
}

const without_query = (text: string): string => text.split(/[?#]/, 1)[0] as string;
