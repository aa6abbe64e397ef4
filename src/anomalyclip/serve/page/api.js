// Requests to the service: the key, waiting while it is busy, and errors as messages.

const KEY = "anomalyclip-key";

export class ServiceError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async () => null;
let tellConnection = () => {};

// `ask` gives a key or null, called when the service wants one; `tell` is called with whether the service answers.
export function configure({ ask, tell }) {
  askForKey = ask;
  tellConnection = tell;
}

let asking = null;

function newKey(refused) {
  asking ??= askForKey(refused).then((key) => {
    if (key !== null) sessionStorage.setItem(KEY, key);
    return key;
  }).finally(() => { asking = null; });
  return asking;
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

// Ask the service; `body` is FormData, or something for JSON. Busy and missing services are asked again.
export async function ask(method, path, { body, signal } = {}) {
  for (let attempt = 0; ; attempt++) {
    const headers = {}, key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined && !(body instanceof FormData)) headers["Content-Type"] = "application/json";
    const content = body === undefined || body instanceof FormData ? body : JSON.stringify(body);
    let response;
    try {
      response = await fetch(path, { method, headers, body: content, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      tellConnection(false);
      await pause(Math.min(2 ** attempt, 15), signal);
      continue;
    }
    tellConnection(true);
    if (response.status === 429 || (response.status === 503 && response.headers.has("Retry-After"))) {
      await pause(Math.min(Number(response.headers.get("Retry-After")) || 1, 60), signal);
      continue;
    }
    if (response.status === 401) {
      if (sessionStorage.getItem(KEY) === key && (await newKey(key !== null)) === null) {
        throw new ServiceError("the service wants a key", 401, "unauthorized");
      }
      continue;
    }
    const answer = response.status === 204 ? null : await response.json().catch(() => null);
    if (response.ok || answer?.predictions) return answer;
    const said = answer?.error;
    throw new ServiceError(said?.message ?? `the service answered ${response.status}`, response.status, said?.code);
  }
}
