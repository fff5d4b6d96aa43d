import { h } from "./dom.ts";
import { icon } from "./icons.ts";

const KEY = "studio-theme";
type Theme = "light" | "dark";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Changes between dark and light; until it is used, the system decides. */
export function theme_button(): HTMLElement {
  let chosen = stored();
  const current = (): Theme => chosen ?? (dark.matches ? "dark" : "light");
  const other = (): Theme => (current() === "dark" ? "light" : "dark");
  const button = h("button", { type: "button", class: "quiet icon-only" });
  const show = () => {
    document.documentElement.dataset.theme = current();
    button.setAttribute("aria-label", `Use the ${other()} theme`);
    button.replaceChildren(icon(current() === "dark" ? "sun" : "moon"));
  };
  button.onclick = () => {
    chosen = other();
    store(chosen);
    show();
  };
  dark.addEventListener("change", show);
  show();
  return button;
}

function stored(): Theme | undefined {
  try {
    const theme = localStorage.getItem(KEY);
    return theme === "light" || theme === "dark" ? theme : undefined;
  } catch {
    return undefined; // storage may be forbidden
  }
}

function store(theme: Theme): void {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // then it lasts as long as the page
  }
}
