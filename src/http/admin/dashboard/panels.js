// The panels: each shows a part of an answer. Names and messages are strangers' words, and only ever text.

import { ago, bar, bytes, count, element, length, many, moment, share } from "./format.js";

const at = (id) => document.getElementById(id);
const STATES = {
  sealed: "sealed",
  never_asked: "not asked yet",
  answering: "answering",
  failing: "failing",
  breaker_open: "left alone",
};
const VERDICTS = {
  hit: "A hit",
  check: "A hit, after a check of the tag",
  partial: "A part of it would be a miss",
  miss: "A miss",
  unavailable: "A miss, and upstream cannot be asked",
};
const LISTED = 12;

/** A large figure and its unit, which is smaller. */
function big(id, text) {
  const [figure, ...unit] = text.split(" ");
  at(id).replaceChildren(figure, unit.length ? " " : "", unit.length ? element("small", "", unit.join(" ")) : "");
}

function setBar(id, percents, low = false) {
  at(id).value = percents ?? 0;
  at(id).classList.toggle("low", low);
}

/** Children in the place of others, unless they are the same: what is being read or marked does not jump. */
function list(id, items) {
  const shown = at(id);
  const made = element("ul", "", ...items);
  if (made.innerHTML !== shown.innerHTML) shown.replaceChildren(...items);
}

/** The head of the page. */
export function daemon(status) {
  const stage = at("stage");
  stage.textContent = status.stage;
  stage.dataset.state = status.stage;
  const where = status.listeners.length ? `, serving ${status.listeners.join(", ")}` : "";
  at("about").textContent = `${status.version}, up for ${length(status.uptime_seconds)}${where}`;
}

/** The four figures. */
export function figures({ traffic, saved_bytes: saved, store, forecast, fills }) {
  const ratio = share(traffic.hits, traffic.requests);
  big("ratio", ratio == null ? "–" : `${ratio.toFixed(1)} %`);
  setBar("ratio-bar", ratio);
  const errors = traffic.results.error ? `; ${many(traffic.results.error, "error")}` : "";
  at("ratio-note").textContent = `of ${many(traffic.requests, "request")} for manifests and blobs${errors}`;

  big("saved", bytes(Math.max(0, saved)));
  setBar("saved-bar", share(Math.max(0, saved), traffic.served_bytes));
  at("saved-note").textContent = `${bytes(traffic.served_bytes)} served, ${bytes(traffic.received_bytes)} fetched`;

  const used = share(store.bytes, store.capacity_bytes);
  big("store", bytes(store.bytes));
  setBar("store-bar", used, used > 90);
  at("store-note").textContent = `of ${bytes(store.capacity_bytes)}, ${many(store.blobs, "blob")}; ${bytes(forecast.free_bytes)} left; ${outlook(forecast)}`;

  const rate = fills.reduce((sum, fill) => sum + fill.rate, 0);
  big("now", fills.length ? `${bytes(rate)}/s` : "0");
  const readers = fills.reduce((sum, fill) => sum + fill.readers, 0);
  at("now-note").textContent = fills.length
    ? `${many(fills.length, "download")}, ${many(readers, "client")} reading along`
    : "nothing is being fetched";
}

function outlook({ growth_bytes_per_day: growth, full_at: full, evicting }) {
  const evicts = evicting ? "; what nobody uses makes room" : "";
  if (growth == null) return `how fast it grows is known after half an hour${evicts}`;
  if (growth <= 0) return `it does not grow${evicts}`;
  const when = full ? `full in ${length((Date.parse(full) - Date.now()) / 1000)}` : "not full for years";
  return `it grows by ${bytes(growth)} a day, ${when}${evicts}`;
}

/** Downloads that run. */
export function fills(running) {
  at("no-fills").hidden = running.length > 0;
  const items = running.slice(0, LISTED).map((fill) => {
    const done = fill.size == null ? null : share(fill.present, fill.size);
    const name = `${fill.upstream}/${fill.repository}`;
    const how = [`${bytes(fill.rate)}/s`, many(fill.readers, "reader")];
    if (fill.resumes) how.push(many(fill.resumes, "resume"));
    if (fill.endpoint) how.push(`from ${fill.endpoint}`);
    return element(
      "li",
      "",
      element("div", "line", element("span", "name", name), element("span", "muted", `${bytes(fill.present)} of ${bytes(fill.size)}`)),
      bar(done, `download of ${fill.digest.slice(0, 19)} of ${name}`),
      element("div", "line small muted", element("span", "mono", fill.digest.slice(0, 19)), how.join(", ")),
    );
  });
  if (running.length > LISTED) items.push(element("li", "muted", `and ${many(running.length - LISTED, "other")}`));
  list("fills", items);
}

/** Whether upstreams answer. */
export function upstreams(all) {
  const idle = all.filter((one) => one.state === "never_asked" && one.requests + one.results.error === 0);
  const items = all.filter((one) => !idle.includes(one)).map(upstream);
  list("upstreams", items);
  at("idle").textContent = idle.length ? `Not asked yet: ${idle.map((one) => one.name).join(", ")}.` : "";
}

function upstream(one) {
  const item = element("li", "", element("div", "line", element("span", "name strong", one.name), state(one)));
  const ratio = share(one.hits, one.requests);
  const figures = [many(one.requests, "request"), ratio == null ? "" : `${ratio.toFixed(0)} % hits`, `${bytes(one.received_bytes)} fetched`];
  item.append(element("div", "small muted", figures.filter(Boolean).join(", ")));
  const limit = one.rate_limit;
  if (limit) {
    const left = limit.limit == null ? null : share(limit.remaining, limit.limit);
    const of = limit.limit == null ? "" : ` of ${count(limit.limit)}`;
    const window = limit.window_seconds ? ` for ${length(limit.window_seconds)}` : "";
    const said = element("div", "small muted", `rate limit: ${count(limit.remaining)}${of} left${window}, said `, moment(limit.at));
    if (left != null) {
      const meter = bar(left, `rate limit of ${one.name} that is left`);
      meter.classList.toggle("low", left < 20);
      item.append(meter);
    }
    item.append(said);
  }
  const error = one.last_error;
  const away = one.state === "failing" || one.state === "breaker_open";
  if (error && (away || Date.now() - Date.parse(error.at) < 3_600_000)) {
    item.append(element("div", "small said", moment(error.at), `: ${error.message}`));
  }
  for (const mirror of one.mirrors) {
    item.append(element("div", "line small", element("span", "name", mirror.url), state(mirror)));
  }
  return item;
}

function state(endpoint) {
  const again = endpoint.asked_again_in_seconds;
  const until = again ? `, asked again in ${again} s` : "";
  const since = endpoint.since ? ` for ${length((Date.now() - Date.parse(endpoint.since)) / 1000)}` : "";
  const pill = element("span", "pill", `${STATES[endpoint.state] ?? endpoint.state}${since}${until}`);
  pill.dataset.state = endpoint.state;
  return pill;
}

/** The largest images. */
export function images(all) {
  const largest = [...all].sort((one, other) => other.bytes - one.bytes).slice(0, LISTED);
  const row = (image) => {
    const name = element("td", "", element("span", "name", image.name));
    const platforms = image.platforms.filter((one) => one.stored).map((one) => one.platform);
    const notes = [platforms.join(", "), image.missing_parts ? many(image.missing_parts, "part is missing", "parts are missing") : ""];
    const note = notes.filter(Boolean).join("; ");
    if (note) name.append(element("div", "small muted", note));
    return element("tr", "", name, element("td", "number", bytes(image.bytes)), element("td", "number own", bytes(image.own_bytes)), element("td", "", moment(image.last_used)));
  };
  at("images").replaceChildren(...largest.map(row));
  const rest = all.length - largest.length;
  at("images-note").textContent = all.length === 0 ? "Nothing is stored yet." : `${many(all.length, "image")}${rest ? `, of which these are the largest` : ""}. Own: what would be freed by removing that one alone.`;
  const names = all.slice(0, 500).map((image) => {
    const option = element("option");
    option.value = image.name;
    return option;
  });
  at("known").replaceChildren(...names);
}

/** What went wrong lately. */
export function errors(all) {
  at("no-errors").hidden = all.length > 0;
  const items = all.slice(0, LISTED).map((error) => {
    const where = [error.upstream, error.repository].filter(Boolean).join("/") || "no upstream";
    const heavy = error.met === "upstream" || error.status == null || error.status >= 500;
    const what = `${error.code}${error.status == null ? "" : ` ${error.status}`}`;
    const times = error.count > 1 ? `${count(error.count)} times, last ` : "";
    return element(
      "li",
      "",
      element("div", "line", element("span", "name", where), element("span", "small muted", times, moment(error.last))),
      element("div", "said", element("span", heavy ? "code" : "code light", what), ` ${error.message}`),
      element("div", "advice said", error.advice),
    );
  });
  if (all.length > LISTED) items.push(element("li", "muted", `and ${many(all.length - LISTED, "other")}`));
  list("errors", items);
}

/** Why an image was a miss. */
export function why(explanation) {
  const { image, verdict, sentences, stored } = explanation;
  const parts = [
    element("p", "verdict", VERDICTS[verdict] ?? verdict),
    element("p", "name muted", image),
    element("ul", "", ...sentences.map((sentence) => element("li", "", sentence))),
  ];
  const missing = stored.parts.filter((part) => !part.stored).slice(0, LISTED);
  if (missing.length) {
    const row = (part) =>
      element(
        "tr",
        "",
        element("td", "", element("span", "mono", part.digest.slice(0, 19)), part.platform ? ` ${part.platform}` : ""),
        element("td", "number", part.bytes == null ? "" : bytes(part.bytes)),
        element("td", "", part.departed ? `${part.departed.why} ${ago(part.departed.at)}` : "not asked for"),
      );
    const head = ["Not stored", "Size", "Why"].map((title, index) => {
      const cell = element("th", index === 1 ? "number" : "", title);
      cell.scope = "col";
      return cell;
    });
    parts.push(element("div", "scroll", element("table", "", element("thead", "", element("tr", "", ...head)), element("tbody", "", ...missing.map(row)))));
  }
  at("why").replaceChildren(...parts);
}

/** What came instead. */
export function whyNot(message) {
  at("why").replaceChildren(element("p", "said", message));
}
