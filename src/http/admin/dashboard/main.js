// What is asked when: figures every two seconds, the rest less often, nothing while nobody looks. Where the API is slow or
// away the page says so, keeps what it knows, and goes on asking.

import { Trouble, ask, token } from "./api.js";
import { Chart } from "./chart.js";
import * as panels from "./panels.js";

const at = (id) => document.getElementById(id);
const chart = new Chart(at("chart"), at("readout"));
let step = "minute";
let seen = null;

/** What is asked, how often at most, and what shows the answer. */
const jobs = [
  {
    every: 2000,
    ask: () => ask("status"),
    show: (status) => {
      seen = Date.now();
      panels.daemon(status);
      panels.figures(status);
      panels.fills(status.fills);
      panels.upstreams(status.upstreams);
    },
  },
  { every: 10_000, ask: () => ask("errors"), show: ({ errors }) => panels.errors(errors) },
  { every: 30_000, ask: () => ask("history", { step }), show: (history) => chart.show(history) },
  { every: 300_000, ask: () => ask("images"), show: ({ images }) => panels.images(images) },
];
const [, , history, images] = jobs;

/** Asks for ever, one request of a job at a time. */
async function run(job) {
  let failures = 0;
  for (;;) {
    if (document.hidden) await visible();
    try {
      job.show(await job.ask());
      failures = 0;
      settled();
    } catch (error) {
      failures += 1;
      failed(error);
    }
    // What fails is asked soon again, and then less and less often.
    const wait = failures ? Math.min(1000 * 2 ** failures, 30_000) : job.every;
    await new Promise((done) => {
      job.hurry = done;
      setTimeout(done, wait);
    });
  }
}

const visible = () =>
  new Promise((done) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      done();
    };
    document.addEventListener("visibilitychange", look);
  });

function settled() {
  document.body.classList.remove("stale");
  at("trouble").hidden = true;
  at("login").hidden = true;
  at("forget").hidden = token.get() == null;
}

function failed(error) {
  if (!(error instanceof Trouble)) {
    // A fault of this page's own must not look like one of the daemon's.
    console.error(error);
    return;
  }
  if (error.status === 401) {
    // An answer to what was asked before another token was typed in says nothing of that.
    if (error.given !== token.get()) return;
    if (at("login").hidden) {
      at("login").hidden = false;
      if (error.given != null) at("login-said").textContent = "This token is not the right one.";
      at("token").focus();
    }
    token.forget();
    at("fresh").textContent = "no right to see the figures";
    return;
  }
  document.body.classList.add("stale");
  const since = seen == null ? "" : ` What is shown is from ${new Date(seen).toLocaleTimeString()}.`;
  const trouble = `ocistern: ${error.message}.${since}`;
  if (at("trouble").textContent !== trouble) at("trouble").textContent = trouble;
  at("trouble").hidden = false;
  if (error.status === 0) {
    at("stage").textContent = "no answer";
    at("stage").dataset.state = "gone";
  }
}

function tick() {
  if (seen == null || !at("login").hidden) return;
  const seconds = Math.round((Date.now() - seen) / 1000);
  const text = seconds < 6 ? "live" : `last answer ${seconds} s ago`;
  if (at("fresh").textContent !== text) at("fresh").textContent = text;
}

const now = () => jobs.forEach((job) => job.hurry?.());

at("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(at("token").value.trim());
  at("token").value = "";
  at("login-said").textContent = "";
  at("login").hidden = true;
  now();
});

at("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

at("images-again").addEventListener("click", () => images.hurry?.());

for (const button of document.querySelectorAll(".choice button")) {
  button.addEventListener("click", () => {
    step = button.dataset.step;
    for (const other of document.querySelectorAll(".choice button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    history.hurry?.();
  });
}

at("why-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  panels.whyNot("Looking…");
  try {
    panels.why(await ask("explain", { image: at("why-name").value }));
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (error.status === 401) failed(error);
    panels.whyNot(error.message);
  }
});

setInterval(tick, 1000);
for (const job of jobs) run(job);
