// Generated text, as it comes.

import { events } from "./api.js";

const CUT = { length: "The answer is cut off: it has as many tokens as one may have.",
              deadline: "The answer is cut off: its time is over." };

/** Why an answer is not whole; "" where it is. */
export const cut = (reason) => CUT[reason] ?? "";

/** Shows one answer in an element. Returns its last choice, and why it ended. */
export async function answerIn(element, path, body, signal) {
  element.textContent = "";
  let last = {};
  for await (const event of events(path, { body: { ...body, stream: true }, signal })) {
    for (const choice of event.choices) {
      element.append(choice.text ?? choice.delta?.content ?? "");
      last = choice;
    }
  }
  return last;
}
