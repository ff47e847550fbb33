// Keeps a page fresh: when a record comes, the page is fetched again, and what it marks as live is put in place.
"use strict";

const label = document.getElementById("live");
// At most so often, in milliseconds.
const PAUSE = 400;
let isDue = false;
let last = 0;

function tell(state, words) {
  label.dataset.state = state;
  label.textContent = words;
}

async function refresh() {
  isDue = false;
  last = Date.now();
  try {
    const answer = await fetch(location.href, {headers: {accept: "text/html"}});
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
      // What a person is about to press stays where it is.
      if (other && !part.contains(document.activeElement) && part.innerHTML !== other.innerHTML) {
        part.replaceChildren(...other.childNodes);
      }
    }
  } catch {
    // The stream says when the proxy is gone.
  }
}

function soon() {
  if (isDue) return;
  isDue = true;
  setTimeout(refresh, Math.max(0, last + PAUSE - Date.now()));
}

if (document.querySelector("[data-live]")) {
  const stream = new EventSource("/v1/stream");
  stream.addEventListener("open", () => { tell("on", "live"); soon(); });
  stream.addEventListener("error", () => tell("off", "not live"));
  stream.addEventListener("record", soon);
  stream.addEventListener("dropped", soon);
  // Rates fall without a record.
  setInterval(soon, 5000);
} else {
  label.hidden = true;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.copy !== undefined) {
    await navigator.clipboard.writeText(button.dataset.copy);
    const words = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = words; }, 1500);
  } else if (button.dataset.post !== undefined) {
    await fetch(button.dataset.post, {method: "POST"});
    button.blur();
    soon();
  } else if (button.dataset.delete !== undefined) {
    await fetch(button.dataset.delete, {method: "DELETE"});
    button.blur();
    soon();
  }
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.dataset.add === undefined) return;
  event.preventDefault();
  const wrong = form.querySelector("[role=alert]");
  const body = JSON.stringify(Object.fromEntries(new FormData(form)));
  const answer = await fetch(form.dataset.add, {method: "POST", headers: {"content-type": "application/json"}, body});
  wrong.textContent = answer.ok ? "" : (await answer.json()).error;
  wrong.hidden = answer.ok;
  if (answer.ok) form.reset();
  soon();
});
