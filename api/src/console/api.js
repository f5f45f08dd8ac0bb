// Calls of /v1 with the viewer's own token. The token is kept in memory, or in the tab's own storage where the viewer wants
// it to survive a reload; it is in no address, and answers are in no cache.

const KEPT = "lakehouse-token";

let token = sessionStorage.getItem(KEPT) ?? "";
let skew = 0;

// Tables are named namespace.table; the first dot divides.
export function tableAt(name) {
  const dot = name.indexOf(".");
  return `tables/${encodeURIComponent(name.slice(0, dot))}/${encodeURIComponent(name.slice(dot + 1))}`;
}

// Who is calling: principal, role and tables, as /v1/me has it; null while nobody is known.
export let me = null;

// The token is not, or no longer, good; somebody has signed in.
export const events = new EventTarget();

// An answer that is an error (RFC 9457), or that no answer came.
export class Problem extends Error {
  constructor(status, { code = "", detail = "", request_id = "", nearest = null } = {}, retryAfter = null) {
    super(detail);
    Object.assign(this, { status, code, detail, requestId: request_id, nearest, retryAfter });
  }
}

// The service's time, in milliseconds.
export const now = () => Date.now() + skew;

export async function call(method, target, { body, headers = {}, signal, accept = "application/json" } = {}) {
  const sent = { accept, ...headers };
  if (token !== "") sent.authorization = `Bearer ${token}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  const options = { method, headers: sent, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  let response;
  try {
    response = await fetch(`v1/${target}`, { ...options, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "no answer came: the service or the way to it is down" });
  }
  const date = Date.parse(response.headers.get("date"));
  if (!Number.isNaN(date)) skew = Math.abs(date - Date.now()) > 2_000 ? date - Date.now() : 0;
  if (response.ok) return response;
  const text = await response.text();
  let told = {
    detail: `the answer has the status ${response.status}, and none of lakehouse's codes: something else has given it`,
  };
  try {
    told = JSON.parse(text);
  } catch {
    // A proxy's page is nothing to show.
  }
  if (response.status === 401 && me !== null) {
    me = null;
    events.dispatchEvent(new Event("out"));
  }
  throw new Problem(response.status, told, response.headers.get("retry-after"));
}

export async function get(target, signal) {
  return (await call("GET", target, { signal })).json();
}

// All items of a list, which comes in pages; `key` is what the answer calls them.
export async function list(target, key, signal) {
  const all = [];
  let page = {};
  do {
    const token = page.next_page_token === undefined ? "" : `&page_token=${page.next_page_token}`;
    page = await get(`${target}?page_size=1000${token}`, signal);
    all.push(...page[key]);
  } while (page.next_page_token !== undefined);
  return all;
}

export async function post(target, body, options = {}) {
  return (await call("POST", target, { ...options, body })).json();
}

// An answer in lines, up to so many of them; the rest is not waited for, and the service stops reading.
export async function* lines(response, most) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let left = most;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value ?? new Uint8Array(), { stream: !done });
      const whole = rest.split("\n");
      rest = whole.pop();
      for (const line of whole) {
        yield line;
        left -= 1;
        if (left === 0) return;
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

export async function signIn(wanted, isKept) {
  const [before, known] = [token, me];
  token = wanted;
  try {
    me = await get("me");
  } catch (error) {
    [token, me] = [before, known];
    throw error;
  }
  if (isKept) sessionStorage.setItem(KEPT, wanted);
  else sessionStorage.removeItem(KEPT);
  events.dispatchEvent(new Event("in"));
}

// With the token that this tab has kept, if it has.
export async function signInAgain() {
  if (token === "") return false;
  try {
    await signIn(token, true);
    return true;
  } catch (error) {
    if (error.status !== 401) throw error;
    signOut();
    return false;
  }
}

export function signOut() {
  [token, me] = ["", null];
  sessionStorage.removeItem(KEPT);
}

// Whether the verbs of operators are the viewer's, too.
export const operates = () => me !== null && me.role !== "reader";
