// What pages do beside htmx: copy, count, drag into order, keep what is being typed. Everything works without scripts but for
// live updates; what is dragged is moved by buttons, too.
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

  // A page that was left is kept for the way back, with its stream of updates, and a browser has six connections for a host:
  // it lets go of its stream, and is loaded anew when somebody comes back to it.
  const streams = new Set();
  if (window.htmx) {
    htmx.createEventSource = (url) => {
      const stream = new EventSource(url, { withCredentials: true });
      streams.add(stream);
      return stream;
    };
  }
  addEventListener("pagehide", () => {
    for (const stream of streams) stream.close();
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });

  // Whoever comes from another issuer has their token after the `#`, which no server sees; it leaves the address at once.
  const bearer = document.querySelector("[data-token]");
  const token = bearer && new URLSearchParams(location.hash.slice(1)).get("access_token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    bearer.elements.access_token.value = token;
    bearer.querySelector(".field").hidden = true;
    try {
      const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
      const who = bearer.querySelector("[data-token-of]");
      who.textContent = `You are signed in there as ${claims.email ?? claims.sub}.`;
      who.hidden = false;
    } catch {
      // What it says is read by the server; here it is only shown.
    }
  }

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

  // A row is dragged by its grip; the form is sent when it is let go, and Escape puts everything back. The others move around the
  // dragged one, which stays where it is in the document: what is moved there loses the pointer.
  let drag = null;
  const stop = (keep) => {
    const { form, body, row, before } = drag;
    drag = null;
    row.classList.remove("dragged");
    const after = [...body.children];
    if (!keep) {
      body.append(...before);
    } else if (after.some((one, place) => one !== before[place])) {
      form.elements.order.value = after.map((one) => one.dataset.id).join(",");
      form.elements.order.disabled = false;
      form.requestSubmit();
    }
  };
  document.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest("[data-order] .grip");
    if (!grip || drag || event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    const row = grip.closest("[data-id]");
    const body = row.parentElement;
    drag = { pointer: event.pointerId, form: grip.closest("form"), body, row, before: [...body.children] };
    grip.setPointerCapture(event.pointerId);
    row.classList.add("dragged");
  });
  document.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drag?.pointer) return;
    const { row } = drag;
    const middle = (one) => {
      const { top, height } = one.getBoundingClientRect();
      return top + height / 2;
    };
    while (row.previousElementSibling && event.clientY < middle(row.previousElementSibling)) row.after(row.previousElementSibling);
    // A list longer than the screen comes along.
    if (event.clientY < 50) window.scrollBy(0, -12);
    if (event.clientY > window.innerHeight - 50) window.scrollBy(0, 12);
    while (row.nextElementSibling && event.clientY > middle(row.nextElementSibling)) row.before(row.nextElementSibling);
  });
  document.addEventListener("pointerup", (event) => { if (event.pointerId === drag?.pointer) stop(true); });
  document.addEventListener("pointercancel", (event) => { if (event.pointerId === drag?.pointer) stop(false); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !drag) return;
    event.preventDefault();
    stop(false);
    say("The order is as it was");
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
