// What pages do beside htmx: copy, count, keep what is being typed. Everything else works without scripts.
(() => {
  "use strict";

  const say = (text) => {
    const region = document.getElementById("said");
    if (region) region.textContent = text;
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy)?.textContent.trim() ?? "";
    try {
      await navigator.clipboard.writeText(text);
      say("Copied");
      const label = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    } catch {
      say("Your browser did not let us copy: select the text instead");
    }
  });

  // The server's clock and this one may differ: what counts is how far the server's was ahead when the page was made.
  const serverNow = () => {
    const made = Number(document.body.dataset.now);
    return made + (performance.now() - loadedAt);
  };
  const loadedAt = performance.now();

  const words = (seconds) => {
    const total = Math.max(0, Math.floor(seconds));
    const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
    const two = (n) => String(n).padStart(2, "0");
    if (h >= 48) return `${Math.floor(h / 24)} days`;
    return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };

  const count = () => {
    const now = serverNow();
    for (const element of document.querySelectorAll("[data-since]")) {
      element.textContent = words((now - Date.parse(element.dataset.since)) / 1000);
    }
    for (const element of document.querySelectorAll("[data-until]")) {
      element.textContent = words((Date.parse(element.dataset.until) - now) / 1000);
    }
  };
  count();
  setInterval(count, 1000);

  // An update never takes away what somebody is typing or reading: it waits until they have left the field.
  let waiting = false;
  const busy = (root) => {
    const active = document.activeElement;
    return active && root.contains(active) && active.matches("input:not([type=checkbox]):not([type=radio]), textarea, select");
  };
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    const root = event.target;
    if (busy(root)) {
      waiting = true;
      event.preventDefault();
      return;
    }
    root.dataset.open = [...root.querySelectorAll("details[open][id]")].map((element) => element.id).join(" ");
    root.dataset.focus = root.contains(document.activeElement) ? document.activeElement.id : "";
  });
  document.addEventListener("htmx:sseMessage", (event) => {
    const root = event.target;
    for (const id of (root.dataset.open ?? "").split(" ").filter(Boolean)) {
      document.getElementById(id)?.setAttribute("open", "");
    }
    if (root.dataset.focus) document.getElementById(root.dataset.focus)?.focus();
    count();
  });
  document.addEventListener("focusout", () => {
    if (waiting) setTimeout(() => { if (waiting && !busy(document.body)) location.reload(); }, 400);
  });

  // A form that was sent is not sent twice by an impatient click; the server would carry it out once anyway.
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    waiting = false;
    const button = event.submitter;
    if (button) setTimeout(() => { button.disabled = true; }, 0);
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) for (const button of document.querySelectorAll("button[disabled]:not([data-off])")) button.disabled = false;
  });
})();
