// Elements: found, made, filled; and what is said to people.

export const $ = (id) => document.getElementById(id);

/** An element with its properties, and texts or elements in it. */
export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Options of a select: pairs of a value and what is shown. */
export function fill(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text })));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

/** Says something to a screen reader alone. */
export function say(text) {
  $("said").textContent = text;
}

/** Shows what went wrong, or that nothing does. */
export function complain(text = "") {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

export function save(name, data) {
  const address = URL.createObjectURL(data);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that is not secure has no clipboard
    const field = make("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  say("Copied");
}

/**
 * Lets a panel's form do one thing at a time. `work(signal)` runs when the form is sent, and is stopped by the
 * Stop button and by what is sent next. `answer` is busy meanwhile: a screen reader reads it at its end.
 */
export function runs(panel, answer, work) {
  const [send, stop] = [panel.querySelector(".send"), panel.querySelector(".stop")];
  let current = null;
  const run = async (event) => {
    event?.preventDefault();
    current?.abort();
    const mine = (current = new AbortController());
    complain();
    stop.hidden = false;
    answer.setAttribute("aria-busy", "true");
    try {
      await work(mine.signal);
    } catch (error) {
      if (!mine.signal.aborted) complain(error.message);
    }
    if (current !== mine) return;
    current = null;
    stop.hidden = true;
    answer.setAttribute("aria-busy", "false");
  };
  panel.querySelector("form").addEventListener("submit", run);
  stop.addEventListener("click", () => (current?.abort(), send.focus()));
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !send.disabled) run(event);
  });
  return { run, stop: () => current?.abort() };
}
