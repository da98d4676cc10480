// The page of a broker: reads JSON, draws it, and reads it again when the one event stream says so.
"use strict";

const REFRESH_REST_MS = 150; // a burst of events is one refresh
const REFRESH_EVERY_MS = 5000; // readings of devices are no events
const EVENTS_SHOWN_MAX = 60;
const RELOADS_SHOWN_MAX = 8;
const FATES_SHOWN_MAX = 12;
const TENANTS_SHOWN_MAX = 50;

const byId = (id) => document.getElementById(id);
let token = null; // kept in this page's memory only
let status = null;
let pending = null;
let running = false;
let again = false;
// Deadlines are counted down from the moment their answer arrived, so that this clock need not be right.
let countdowns = [];

/** An element with attributes and children; text is always text, never markup. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function bytes(amount) {
  if (amount === null || amount === undefined) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (amount >= 1024 && unit < units.length - 1) { amount /= 1024; unit += 1; }
  return `${unit === 0 || Number.isInteger(amount) ? amount : amount.toFixed(1)} ${units[unit]}`;
}

function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false });

function countdown(ms) {
  const node = el("span", { class: "number" }, duration(ms));
  countdowns.push({ node, until: performance.now() + ms });
  return node;
}

function notice(text, good) {
  const box = byId("notice");
  box.textContent = text || "";
  box.classList.toggle("good", Boolean(good));
  box.hidden = !text;
  clearTimeout(notice.timer);
  if (text) notice.timer = setTimeout(() => { box.hidden = true; }, 12000);
}

// ---- talking to the broker

class Refused extends Error {
  constructor(problem, code) {
    super(problem.hint ? `${problem.detail}\n${problem.hint}` : problem.detail);
    this.status = code;
  }
}

async function call(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method, headers, cache: "no-store", credentials: "omit",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await response.json().catch(() => ({ detail: `the broker answered ${response.status}` }));
  // What became of a reload is an answer, whatever it is.
  if (!response.ok && !answer.outcome) throw new Refused(answer, response.status);
  return answer;
}

/** Like call, but asks for the token when the broker wants one. */
async function act(method, path, body) {
  try {
    return await call(method, path, body);
  } catch (error) {
    if (error.status !== 401) throw error;
    token = await askToken();
    if (!token) throw error;
    try {
      return await call(method, path, body);
    } catch (second) {
      if (second.status === 401) token = null;
      throw second;
    }
  }
}

function ask(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
    dialog.showModal();
  });
}

async function askToken() {
  const input = byId("token");
  input.value = "";
  // Enter means the token, not the first button of the form.
  input.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    byId("token-dialog").close("ok");
  };
  const given = await ask(byId("token-dialog"));
  const text = input.value.trim();
  input.value = "";
  return given && text ? text : null;
}

async function withButton(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    notice(error.message);
  } finally {
    button.disabled = false;
    refresh();
  }
}

// ---- drawing

function badge(text, kind) {
  return el("span", { class: `badge ${kind || ""}` }, text);
}

function drawStatus(next) {
  status = next;
  byId("badge-dev").hidden = !status.dev;
  const state = byId("badge-state");
  state.hidden = status.state === "serving";
  const words = { recovering: "discovering devices", safe: "started safe, grants nothing" };
  state.textContent = words[status.state] ?? status.state;
  state.className = "badge warn";
  byId("who").textContent = `you are ${status.caller}${status.admin ? ", an operator" : ""}`;
  byId("footer-facts").textContent =
    `version ${status.version} · process ${status.pid} · up ${duration(status.uptime_ms)}` +
    (status.listen.length ? ` · ${status.listen.join(" · ")}` : "");
}

function drawSummary(devices, leases, queue) {
  const sum = (pick) => devices.reduce((total, device) => total + pick(device), 0);
  const total = sum((device) => device.memory.total);
  const free = sum((device) => (device.leasable && !device.cordon && !device.lost ? device.memory.free : 0));
  const held = leases.filter((lease) => lease.state === "active" || lease.state === "draining").length;
  const draining = leases.filter((lease) => lease.state === "draining").length;
  const row = (name, value, small) => el("div", {}, el("dt", {}, name), el("dd", {}, value, small ? el("small", {}, ` ${small}`) : null));
  byId("summary").replaceChildren(
    row("Devices", String(status.devices), `${status.devices_open} open`),
    row("Memory free to grant", bytes(free), `of ${bytes(total)}`),
    row("Leases held", String(held), draining ? `${draining} draining` : ""),
    row("Waiting", String(queue.total), ""),
    row("Policy generation", String(status.policy.generation), status.policy.watched ? "watched" : "not watched"),
  );
}

function segment(kind, part, total, label) {
  const share = total > 0 ? Math.min(100, (100 * part) / total) : 0;
  const node = el("span", { class: kind, title: `${label}: ${bytes(part)}` });
  node.style.width = `${share}%`;
  return node;
}

function memoryBar(memory) {
  const words = `${bytes(memory.granted)} granted, ` +
    (memory.used === null ? "use unknown, " : `${bytes(memory.used)} in use, `) +
    `${bytes(memory.foreign)} foreign, ${bytes(memory.reserve)} reserved, of ${bytes(memory.total)}`;
  const track = el("div", { class: "track" },
    segment("granted", memory.granted, memory.total, "granted"),
    segment("foreign", memory.foreign, memory.total, "foreign"));
  const rest = el("span", {});
  rest.style.flex = "1";
  track.append(rest, segment("reserve", memory.reserve, memory.total, "reserve"));
  const bar = el("div", { class: "bar", role: "img", "aria-label": words }, track);
  if (memory.used !== null) {
    bar.append(el("div", { class: "track thin" }, segment("observed", memory.used, memory.total, "observed in use")));
  }
  return bar;
}

function figure(value, name) {
  return el("span", {}, el("b", {}, value), ` ${name}`);
}

function deviceCard(device) {
  const { memory } = device;
  const sub = [device.id, device.pci_bus_id, device.driver, device.found_by.join(" + ")].filter(Boolean).join(" · ");
  const badges = el("div", { class: "badges" });
  if (device.simulated) badges.append(badge("simulated", "warn"));
  if (device.kind === "cpu") badges.append(badge("software adapter", "plain"));
  if (!device.leasable) badges.append(badge("not leasable", "warn"));
  if (device.lost) badges.append(badge("lost", "bad"));
  if (device.quarantined) badges.append(badge("quarantined", "bad"));
  if (device.overcommitted) badges.append(badge("overcommitted", "bad"));
  if (device.telemetry === "stale") badges.append(badge("reading is old", "warn"));
  if (device.telemetry === "unsupported" && !device.simulated) badges.append(badge("use cannot be read", "warn"));
  if (device.cordon) badges.append(badge(`cordoned: ${device.cordon.reason || `by ${device.cordon.by}`}`, "warn"));
  if (device.drain) badges.append(badge(`draining ${device.drain.leases}`, "warn"));
  for (const label of device.labels) badges.append(badge(label, ""));
  const figures = el("div", { class: "figures" },
    figure(bytes(memory.free), "free"), figure(bytes(memory.granted), "granted"),
    memory.used === null ? null : figure(bytes(memory.used), "in use"),
    memory.foreign ? figure(bytes(memory.foreign), "foreign") : null,
    memory.reserve ? figure(bytes(memory.reserve), "reserve") : null,
    figure(bytes(memory.total), "total"),
    device.utilisation_percent === null ? null : figure(`${device.utilisation_percent} %`, "busy"),
    device.temperature_c === null ? null : figure(`${device.temperature_c} °C`, ""),
    device.power_mw === null ? null : figure(`${Math.round(device.power_mw / 1000)} W`, ""));
  const card = el("article", { class: "card" },
    el("h3", {}, `${device.index}  ${device.name}`), el("div", { class: "sub" }, sub), badges, memoryBar(memory), figures);
  const foreign = device.processes.filter((process) => !process.lease);
  if (device.leases.length || foreign.length) {
    card.append(el("ul", { class: "holders" },
      ...device.leases.map((lease) => el("li", {}, el("span", {}, lease.holder, lease.state === "active" ? "" : ` (${lease.state})`),
        el("span", { class: "number" }, lease.exclusive ? "whole device" : bytes(lease.memory)))),
      ...foreign.map((process) => el("li", {}, el("span", {}, `process ${process.pid}, no lease`),
        el("span", { class: "number" }, process.memory === null ? "" : bytes(process.memory))))));
  }
  return card;
}

function drawDevices(devices) {
  const none = status.state === "recovering" ? "Looking for devices …"
    : status.state === "safe" ? "The broker started safe and looks at no device."
    : "No device was found. A simulated one can be declared in gpu-manager.toml.";
  byId("device-list").replaceChildren(...(devices.length ? devices.map(deviceCard) : [el("p", { class: "empty" }, none)]));
}

function stateCell(lease) {
  const kinds = { draining: "warn", reclaiming: "bad", waiting: "" };
  const cell = el("td", {}, badge(lease.state, kinds[lease.state]));
  if (lease.unresponsive) cell.append(" ", badge("unresponsive", "bad"));
  if (lease.loading) cell.append(" ", badge("loading", ""));
  const cause = lease.drain && lease.drain.causes[0];
  if (cause) cell.append(el("span", { class: "sub" }, `${cause.source}: ${cause.reason}, `, countdown(cause.remaining_ms), " left"));
  if (lease.reclaim) cell.append(el("span", { class: "sub" }, `${lease.reclaim.phase}: ${lease.reclaim.reason}`));
  return cell;
}

function leaseRow(lease) {
  const memory = lease.allocations.reduce((total, part) => total + part.memory, 0);
  const observed = lease.observed ? el("span", { class: "sub" }, `${bytes(lease.observed.memory)} observed`) : null;
  const release = el("button", { type: "button", "data-release": lease.id, "aria-label": `Release the lease of ${lease.holder.name}` }, "Release");
  release.addEventListener("click", () => releaseLease(lease, release));
  return el("tr", { "data-lease": lease.id },
    el("td", {}, lease.holder.name, el("span", { class: "sub mono" }, `${lease.id} · ${lease.holder.user}`)),
    stateCell(lease),
    el("td", {}, lease.allocations.map((part) => part.device).join(", ") || "–",
      lease.fence === null ? null : el("span", { class: "sub", title: `fence ${lease.fence}` }, lease.enforcement)),
    el("td", { class: "number" }, lease.wanted.exclusive ? "whole" : bytes(memory), observed),
    el("td", {}, lease.class),
    el("td", {}, lease.remaining_ms === null ? "–" : countdown(lease.remaining_ms)),
    el("td", { class: "act" }, lease.state === "reclaiming" ? null : release));
}

function drawLeases(leases) {
  const held = leases.filter((lease) => lease.state !== "waiting");
  held.sort((a, b) => (a.created_at < b.created_at ? 1 : -1));
  byId("lease-count").textContent = held.length ? `${held.length} held or being reclaimed` : "";
  byId("lease-rows").replaceChildren(...(held.length ? held.map(leaseRow)
    : [el("tr", {}, el("td", { colspan: "7", class: "empty" }, "No leases. ", el("code", {}, "gpu-manager run --memory 1GiB -- CMD"), " takes one."))]));
}

function waiter(lease) {
  const why = lease.waiting;
  const asks = lease.wanted.exclusive ? "whole device" : bytes(lease.wanted.memory);
  const cancel = el("button", { type: "button", "aria-label": `Cancel the request of ${lease.holder.name}` }, "Cancel");
  cancel.addEventListener("click", () => releaseLease(lease, cancel));
  return el("li", { "data-lease": lease.id },
    el("span", { class: "place" }, why ? String(why.position) : "·"),
    el("div", {}, el("b", {}, lease.holder.name), ` · ${lease.wanted.devices} × ${asks} · ${lease.class}`,
      el("div", { class: "why" }, why ? why.reason : "", why && why.eta_ms !== null ? ` (about ${duration(why.eta_ms)})` : "")),
    cancel);
}

function drawQueue(queue) {
  byId("queue-count").textContent = queue.total ? `${queue.total} waiting` : "";
  byId("queue").replaceChildren(...(queue.waiters.length ? queue.waiters.map(waiter) : [el("li", { class: "empty" }, "Nobody waits.")]));
}

function diagnosticBox(item) {
  return el("div", { class: "diagnostic" },
    el("div", { class: "place" }, `${item.file}:${item.line}:${item.column}`), el("div", {}, item.message),
    item.hint ? el("div", { class: "hint" }, `hint: ${item.hint}`) : null);
}

const DISK_WORDS = {
  differs: ["not in force", "warn", "“Reload now” loads it."],
  failing: ["has errors", "bad", "Mend it and save, or see below what is wrong."],
  pending: ["waits for a confirmation", "warn", "Confirm it, or save something else."],
  same: ["in force", "", ""],
  unknown: ["not looked at since the start", "plain", "“Reload now” looks."],
};

function diskState(policy) {
  const [words, kind, advice] = DISK_WORDS[status.policy.disk] || [status.policy.disk, "plain", ""];
  const why = policy.error_state && policy.error_state.summary;
  return [badge(words, kind), why ? el("div", {}, why) : null, advice ? el("div", { class: "hint" }, advice) : null];
}

function override(set) {
  const until = set.until ? ` by ${set.by} until ${clock(set.until)}` : "";
  return el("div", {}, el("span", { class: "mono" }, `${set.setting} = ${set.value}`), ` (${set.origin}${until})`);
}

function fateLine(fate) {
  const words = { drain: "is asked to go", force: "ends at once", keep: "stays although no longer allowed",
    shorten: "is held no longer than the new limit", withdraw: "may stay again" };
  const why = fate.rule ? `${fate.rule}: ${fate.reason}` : fate.reason;
  return el("li", {}, el("b", {}, fate.holder), ` ${words[fate.fate] || fate.fate} (${why})`,
    fate.unenforceable ? el("span", { class: "hint" }, " – nothing can make its holder go") : null);
}

function fateList(result) {
  const denied = result.denied.map((waiter) => el("li", {}, el("b", {}, waiter.holder), ` waits and is refused (${waiter.rule}: ${waiter.reason})`));
  const lines = [...result.leases.map(fateLine), ...denied];
  const more = lines.length - FATES_SHOWN_MAX;
  return lines.length ? el("ul", {}, ...lines.slice(0, FATES_SHOWN_MAX), more > 0 ? el("li", {}, `and ${more} more`) : null) : null;
}

/** The plan that waits, with its button; not drawn anew while it is the same, so that the button keeps its focus. */
function drawPending(candidate, reload) {
  const box = byId("pending");
  const plan = candidate && candidate.state === "needs_confirmation" ? candidate.plan : "";
  if (box.dataset.plan === plan) return;
  box.dataset.plan = plan;
  if (!plan) { box.replaceChildren(); return; }
  const asked = reload.history.find((result) => result.plan === plan);
  const confirm = el("button", { type: "button", class: "primary" }, "Confirm and apply");
  confirm.addEventListener("click", () => withButton(confirm, async () => reloaded(await act("POST", "/v1/hot-reload", { confirm: plan }))));
  box.replaceChildren(el("div", { class: "pending" },
    el("p", {}, "The saved files would touch what is held, and wait: ", el("b", {}, candidate.summary), "."),
    asked ? fateList(asked) : null, confirm, el("span", { class: "hint" }, " or ", el("code", {}, `gpu-manager reload --confirm ${plan.slice(0, 12)}`))));
}

function drawPolicy(policy, reload) {
  const pair = (name, ...value) => [el("dt", {}, name), el("dd", {}, ...value.filter(Boolean))];
  const candidate = policy.candidate;
  const breaker = reload.breaker;
  const errs = policy.erring.map((rule) => el("div", {}, `${rule.rule}: ${rule.count} ×, last: ${rule.last}`));
  drawPending(candidate, reload);
  byId("policy").replaceChildren(
    ...pair("generation", el("b", {}, String(policy.generation)), " ", el("span", { class: "mono" }, policy.hash.slice(0, 12)),
      ` since ${clock(policy.loaded_at)}`),
    ...pair("on disk", ...diskState(policy)),
    ...pair("files", policy.files.map((file) => file.path).join(", ") || "none: built-in policy"),
    ...pair("watch", reload.enabled ? "on" : "off", reload.why ? ` (${reload.why})` : ""),
    ...(breaker.state === "closed" ? [] : pair("saves", breaker.state === "open"
      ? `rest until ${clock(breaker.until)}: they went back and forth` : "the next one is on trial")),
    ...(policy.overrides.length ? pair("over the files", ...policy.overrides.map(override)) : []),
    ...(policy.degraded ? pair("degraded", "the last good policy is in force, not the files") : []),
    ...(policy.rolled_back ? pair("taken back", `${policy.rolled_back.hash.slice(0, 12)}: ${policy.rolled_back.why}`) : []),
    ...(policy.draining.length ? pair("draining", `${policy.draining.length} leases because of a policy`) : []),
    ...(errs.length ? pair("rules that fail", ...errs) : []),
  );
  byId("reload-result").replaceChildren(...(candidate ? candidate.diagnostics.slice(0, 8).map(diagnosticBox) : []));
  drawHistory(reload.history);
  drawTenants(policy.tenants);
}

function micros(us) {
  if (us < 1000) return `${us} µs`;
  return us < 1000000 ? `${(us / 1000).toFixed(us < 10000 ? 1 : 0)} ms` : `${(us / 1000000).toFixed(1)} s`;
}

function historyRow(result) {
  const kinds = { applied: "", unchanged: "plain", failed: "bad", rejected: "bad", rolled_back: "bad" };
  const { phases } = result;
  const parts = [["settled", phases.settle_us], ["read", phases.read_us], ["compiled", phases.compile_us], ["planned", phases.plan_us], ["applied", phases.apply_us]];
  const times = parts.filter(([, us]) => us).map(([name, us]) => `${name} ${micros(us)}`);
  const changes = result.changes.length > 1 ? el("ul", {}, ...result.changes.slice(0, 6).map((change) => el("li", {}, change))) : null;
  return el("tr", {},
    el("td", {}, el("time", { datetime: result.at }, clock(result.at)), el("span", { class: "sub" }, `generation ${result.generation}`)),
    el("td", {}, result.trigger, result.by ? el("span", { class: "sub" }, result.by) : null),
    el("td", {}, badge(result.outcome.replaceAll("_", " "), result.outcome in kinds ? kinds[result.outcome] : "warn")),
    el("td", { class: "what" }, result.summary, changes, fateList(result)),
    el("td", { class: "phases" }, times.join(" · ") || "–"));
}

function drawHistory(history) {
  if (!history.length) return;
  byId("history").replaceChildren(...history.slice(0, RELOADS_SHOWN_MAX).map(historyRow));
}

function drawTenants(tenants) {
  byId("tenants").hidden = !tenants.length;
  const cell = (value) => el("td", { class: "number" }, value);
  byId("tenant-rows").replaceChildren(...tenants.slice(0, TENANTS_SHOWN_MAX).map((tenant) => el("tr", {},
    el("td", {}, tenant.user ? (tenant.name ? `${tenant.name} · ${tenant.user}` : tenant.user) : tenant.name),
    cell(String(tenant.weight)), cell(String(tenant.held.leases)), cell(String(tenant.held.devices)),
    cell(bytes(tenant.held.memory)), cell(String(tenant.waiting)), cell(`${bytes(tenant.used / 3600)} h`))));
}

function drawEvent(event) {
  const list = byId("events");
  for (const empty of list.querySelectorAll(".empty")) empty.remove();
  const about = [event.lease, event.device, event.by && `by ${event.by}`].filter(Boolean).join(" · ");
  list.prepend(el("li", {}, el("time", { datetime: event.at }, clock(event.at)),
    el("div", {}, el("b", {}, event.name.replaceAll("_", " ")), about ? ` · ${about}` : "",
      el(event.text.includes("\n") ? "pre" : "p", {}, event.text))));
  while (list.children.length > EVENTS_SHOWN_MAX) list.lastElementChild.remove();
}

// ---- keeping up

/** Reads everything again soon; many calls are one. */
function refresh() {
  if (pending) return;
  pending = setTimeout(() => { pending = null; refreshNow(); }, REFRESH_REST_MS);
}

async function refreshNow() {
  if (running) { again = true; return; }
  running = true;
  try {
    const [now, devices, leases, queue, policy, reload] = await Promise.all([
      call("GET", "/v1/status"), call("GET", "/v1/devices"), call("GET", "/v1/leases?live=true"),
      call("GET", "/v1/queue"), call("GET", "/v1/policy"), call("GET", "/v1/hot-reload"),
    ]);
    const focused = document.activeElement && document.activeElement.dataset.release;
    countdowns = [];
    drawStatus(now);
    drawSummary(devices.devices, leases.leases, queue);
    drawDevices(devices.devices);
    drawLeases(leases.leases);
    drawQueue(queue);
    drawPolicy(policy, reload);
    if (focused) document.querySelector(`[data-release="${CSS.escape(focused)}"]`)?.focus();
    document.body.dataset.loaded = "true";
  } catch (error) {
    if (error instanceof Refused) notice(error.message);
  } finally {
    running = false;
    if (again) { again = false; refresh(); }
  }
}

const EVENT_NAMES = [
  "device_cordoned", "device_found", "device_lost", "device_overcommitted", "device_uncordoned", "emergency_release",
  "lease_draining", "lease_ended", "lease_granted", "lease_quarantined", "lease_ready", "lease_reclaiming",
  "lease_stuck", "lease_unresponsive", "lease_waiting", "lease_withdrawn", "policy_pending", "policy_planned", "policy_refused",
  "policy_rolled_back", "policy_switched", "reload_begun", "reload_breaker", "reset",
];

function follow() {
  const live = byId("live");
  const say = (state, text) => { live.dataset.state = state; live.textContent = text; };
  const source = new EventSource("/v1/events");
  source.addEventListener("open", () => { say("live", "live"); refresh(); });
  // Dev mode: somebody works on this page.
  source.addEventListener("assets_changed", () => location.reload());
  source.addEventListener("error", () => {
    say("lost", "connection lost, trying again");
    // A browser gives up after an answer that is no stream; this page does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 3000);
  });
  for (const name of EVENT_NAMES) {
    source.addEventListener(name, (message) => {
      drawEvent(JSON.parse(message.data));
      refresh();
    });
  }
}

async function releaseLease(lease, button) {
  byId("sure-title").textContent = lease.state === "waiting" ? "Cancel this request?" : "Release this lease?";
  byId("sure-text").textContent = lease.state === "waiting"
    ? `${lease.holder.name} leaves the queue.`
    : `${lease.holder.name} (${lease.id}) loses its grant at once. Its process is not stopped.`;
  if (!(await ask(byId("sure-dialog")))) return;
  await withButton(button, async () => {
    const ended = await act("DELETE", `/v1/leases/${encodeURIComponent(lease.id)}`);
    notice(`${lease.holder.name} is ${ended.state}`, true);
  });
}

function reloaded(result) {
  notice(result.summary, result.outcome === "applied" || result.outcome === "unchanged");
}

byId("reload").addEventListener("click", (event) => withButton(event.currentTarget, async () => {
  reloaded(await act("POST", "/v1/hot-reload", {}));
}));

setInterval(() => {
  const now = performance.now();
  for (const { node, until } of countdowns) node.textContent = duration(until - now);
}, 1000);
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_EVERY_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

refreshNow();
follow();
