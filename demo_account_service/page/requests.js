// Requests of the page. An answer is {status, body}; status 0 means that there was none.

import { word } from "/page/parts.js";

const PATIENCE_MILLISECONDS = 30000;
export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const answer = await fetch(path, options);
    return { status: answer.status, body: await answer.json() };
  } catch {
    return { status: 0, body: { error: { code: "no_answer", message: word("not_armed") } } };
  }
}

export async function askUntilAnswered(path, body) {
  const deadline = Date.now() + PATIENCE_MILLISECONDS;
  for (;;) {
    const answer = await ask(path, body);
    if (![0, 503, 504].includes(answer.status) || Date.now() > deadline) return answer;
    await pause(300);
  }
}
