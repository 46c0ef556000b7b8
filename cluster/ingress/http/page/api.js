// Calls of the server's HTTP API, with the key if there is one.

const PLACE = "tandem.key";
let ask = async () => false;
let asking = null;

export const key = () => sessionStorage.getItem(PLACE) ?? "";
export const keep = (value) => sessionStorage.setItem(PLACE, value);

/** Sets what asks for a key; it says whether there is another one now. */
export function whenRefused(asks) {
  ask = asks;
}

/** An address of the API's, which begins where this page is. */
export const address = (path) => new URL(path, document.baseURI).href;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** What the server says of a request, whose fields people here do not know. */
function message(body, status) {
  const error = body?.error;
  const told = (typeof error === "string" ? error : error?.message) || `The server answered with status ${status}.`;
  return error?.param && told.startsWith(`${error.param}: `) ? `What was sent ${told.slice(error.param.length + 2)}.` : told;
}

/** An answer that is OK. `body`: what is sent as JSON, or a form. Throws ApiError. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
    const given = { headers, signal };
    if (body !== undefined) {
      given.method = "POST";
      given.body = body instanceof FormData ? body : JSON.stringify(body);
      if (!(body instanceof FormData)) headers["Content-Type"] = "application/json";
    }
    let answer;
    try {
      answer = await fetch(address(path), given);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "The server cannot be reached.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      asking ??= ask().finally(() => (asking = null));
      if (await asking) continue;
    }
    const told = message(await answer.json().catch(() => null), answer.status);
    const wait = answer.headers.get("Retry-After");
    throw new ApiError(answer.status, wait ? `${told} Try again in ${wait} s.` : told);
  }
}

export const json = async (path, given) => (await call(path, given)).json();

/** The events of a stream. Throws ApiError where one says that the rest will not come. */
export async function* events(path, given) {
  const reader = (await call(path, given)).body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "The connection was lost before the answer's end.");
    const parts = (unread + value).split("\n\n");
    unread = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(200, message(event, 200));
      yield event;
    }
  }
}
