// Asking the admin API: nothing waits for ever, and a token that was typed in stays in this tab.

const PATIENCE = 10_000;
const KEPT = "ocistern-token";

/** What came instead of an answer. */
export class Trouble extends Error {
  /** `status` is 0 where nothing answered; `given` is the token that was shown, if any. */
  constructor(status, message, given = null) {
    super(message);
    this.status = status;
    this.given = given;
  }
}

/** The token, if one was typed in. */
export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** The answer to a read, as it was parsed; a `Trouble` otherwise. */
export async function ask(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  const given = token.get();
  let response;
  try {
    response = await fetch(`/api/v1/${path}${query ? `?${query}` : ""}`, {
      headers: given ? { authorization: `Bearer ${given}` } : {},
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(PATIENCE),
    });
    const answer = await response.json();
    if (response.ok) return answer;
    throw new Trouble(response.status, answer?.errors?.[0]?.message ?? response.statusText, given);
  } catch (error) {
    if (error instanceof Trouble) throw error;
    if (response && !response.ok) throw new Trouble(response.status, response.statusText, given);
    const slow = error?.name === "TimeoutError";
    throw new Trouble(0, slow ? "it does not answer within 10 s" : "it cannot be reached");
  }
}
