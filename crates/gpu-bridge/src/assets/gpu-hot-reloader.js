// Lets any page of a developer's own machine reload the policy of a gpu-manager broker.
//
//   <script src="http://localhost:8080/gpu-hot-reloader.js"></script>
//
// It does nothing unless the page itself is on localhost or 127.0.0.1. It adds two functions:
//
//   window.triggerGPUHotReload()           reloads the policy now; a promise of the result, or of null
//   window.setGPUHotReloadEnabled(bool)    off: triggers do nothing and events are not followed
//
// A page of another origin than the broker's must be listed in `allowed_origins` of `[http]`.
(() => {
  "use strict";

  const PREFIX = "[gpu-hot-reload]";
  const isLocal = ["localhost", "127.0.0.1"].includes(window.location.hostname);
  const broker = document.currentScript ? new URL(document.currentScript.src).origin : window.location.origin;
  const hint = `is the broker at ${broker} running, and is ${window.location.origin} in its [http] allowed_origins?`;

  let enabled = isLocal;
  let events = null;

  const log = (text) => console.info(`${PREFIX} ${text}`);
  const warn = (text) => console.warn(`${PREFIX} ${text}`);

  function report(result) {
    log(`${result.outcome}: ${result.summary} (${result.took_ms} ms)`);
    for (const change of result.changes) log(`  ${change}`);
    for (const item of result.diagnostics) {
      warn(`  ${item.file}:${item.line}:${item.column}: ${item.message}${item.hint ? ` (hint: ${item.hint})` : ""}`);
    }
  }

  async function trigger() {
    if (!enabled) {
      warn(isLocal ? "is switched off: setGPUHotReloadEnabled(true) switches it on" : "is off: this page is not on localhost");
      return null;
    }
    try {
      const response = await fetch(`${broker}/v1/hot-reload`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: "{}", credentials: "omit",
      });
      const answer = await response.json();
      if (!response.ok) {
        warn(`refused: ${answer.detail}${answer.hint ? ` (hint: ${answer.hint})` : ""}`);
        return null;
      }
      report(answer);
      return answer;
    } catch (error) {
      warn(`no answer (${error.message}): ${hint}`);
      return null;
    }
  }

  function follow() {
    if (events || !enabled || !("EventSource" in window)) return;
    events = new EventSource(`${broker}/v1/events`);
    let connected = false;
    events.addEventListener("open", () => {
      if (!connected) log(`follows the broker at ${broker}`);
      connected = true;
    });
    events.addEventListener("error", () => {
      if (connected) warn("lost the broker, trying again");
      else if (events && events.readyState === EventSource.CLOSED) warn(`cannot follow events: ${hint}`);
      connected = false;
    });
    for (const name of ["policy_switched", "policy_refused"]) {
      events.addEventListener(name, (message) => {
        const event = JSON.parse(message.data);
        (name === "policy_refused" ? warn : log)(`${name.replace("_", " ")}: ${event.text}`);
        window.dispatchEvent(new CustomEvent("gpu-hot-reload", { detail: event }));
      });
    }
  }

  function unfollow() {
    if (events) events.close();
    events = null;
  }

  window.triggerGPUHotReload = trigger;
  window.setGPUHotReloadEnabled = (on) => {
    if (on && !isLocal) {
      warn("stays off: this page is not on localhost or 127.0.0.1");
      return false;
    }
    enabled = Boolean(on);
    if (enabled) follow();
    else unfollow();
    log(enabled ? "on" : "off");
    return enabled;
  };

  if (isLocal) follow();
})();
