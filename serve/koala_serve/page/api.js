// The server's jobs API: requests with a key, events over a stream that may break, and its errors.

const SILENCE = 45_000; // milliseconds; a server that draws speaks every 15 s
const LONGEST_PAUSE = 15_000;
const KEY = "koala-key";

/** An error in the server's own words. `param` is the field that is to blame, `retryAfter` is in seconds. */
export class ServerError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

/** Wait, unless it is cancelled. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
  });
}

/** What speaks to the server; `askForKey(wasWrong)` returns a key when the server wants one. */
export class Server {
  constructor(askForKey) {
    this.askForKey = askForKey;
  }

  /** An answer that is good. Throws ServerError, and TypeError where there is none. */
  async request(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await fetch(path, { ...options, headers });
      if (response.ok) return response;
      if (response.status !== 401) throw await readError(response);
      if (sessionStorage.getItem(KEY) === key) sessionStorage.setItem(KEY, await this.askForKey(key !== null));
    }
  }

  async models() {
    return (await (await this.request("v1/models")).json()).data;
  }

  /** Ask for pictures; while the server has no room, `onWait(error, seconds)` is told how long it is waited. */
  async submit(body, signal, onWait) {
    const headers = { "Content-Type": "application/json" };
    for (;;) {
      try {
        // Not given up halfway: the answer has the number that a job is cancelled by.
        const response = await this.request("v1/jobs", { method: "POST", headers, body: JSON.stringify(body) });
        return await response.json();
      } catch (error) {
        if (!error.retryAfter) throw error;
        for (let left = error.retryAfter; left > 0; left -= 1) {
          onWait(error, left);
          await pause(1000, signal);
        }
      }
    }
  }

  async cancel(id) {
    return (await this.request(`v1/jobs/${id}/cancel`, { method: "POST" })).json();
  }

  /** Follow a job to its end and return it; a connection that is lost is made again, after `onLost()`. */
  async follow(id, signal, onEvent, onLost) {
    for (let failures = 0; ; failures += 1) {
      try {
        const response = await this.request(`v1/jobs/${id}/events`, { signal });
        for await (const [kind, data] of readEvents(response)) {
          failures = 0;
          if (["completed", "failed", "cancelled"].includes(kind)) return data;
          onEvent(kind, data);
        }
      } catch (error) {
        if (signal.aborted || (error instanceof ServerError && error.status < 500)) throw error;
      }
      onLost();
      await pause(Math.min(1000 * 2 ** failures, LONGEST_PAUSE), signal);
    }
  }
}

/** Yield [name, data] of server-sent events until the stream ends or nothing has come for long. */
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const timer = setTimeout(() => reader.cancel(), SILENCE);
    const { value, done } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s)));
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

async function readError(response) {
  const { status } = response;
  try {
    const { message, param } = (await response.json()).error;
    return new ServerError(message, { status, param, retryAfter: Number(response.headers.get("Retry-After")) || 0 });
  } catch {
    return new ServerError(`The server answered ${status} without a reason. Try again; its log says more.`, { status });
  }
}
