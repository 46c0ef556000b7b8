// The panels, one of which is shown: chosen by pointer or arrow keys, and by the address' fragment.

import { $, complain } from "./dom.js";

/** `panels`: by name, what is called when the panel is shown and when it is left. */
export function tabs(panels) {
  const list = $("tabs");
  const names = Object.keys(panels);
  let shown = null;
  for (const name of names) $(`tab-${name}`).hidden = false;

  function show(name) {
    if (!names.includes(name)) name = names[0];
    if (name === shown) return;
    if (shown) {
      panels[shown].left?.();
      complain();
    }
    shown = name;
    for (const one of names) {
      $(one).hidden = one !== name;
      $(`tab-${one}`).setAttribute("aria-selected", one === name);
      $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    }
    panels[name].shown?.();
  }

  list.addEventListener("click", ({ target }) => {
    if (target.role === "tab") location.hash = target.id.slice(4);
  });
  list.addEventListener("keydown", (event) => {
    const at = names.indexOf(shown);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const name = names.at(to % names.length);
    location.hash = name;
    $(`tab-${name}`).focus();
  });
  addEventListener("hashchange", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));
}
