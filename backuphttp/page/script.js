// The page is complete without this script. What it adds is live: operations as
// they run, buttons, a filter, and ages that grow. Whatever the server has to say
// about snapshots, it says in the page, so after a change the script gets the page
// again and takes over its parts with data-live.
"use strict";

(() => {
  const root = document.documentElement;
  const base = root.dataset.base;
  const byId = (id) => document.getElementById(id);
  const live = (name) => document.querySelector(`[data-live="${name}"]`);

  // The server's clock may differ from this one, and ages are by the server's.
  const ahead = Date.parse(root.dataset.now) - Date.now();
  const now = () => Date.now() + ahead;

  // make returns an element with text, or with children, in it.
  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // ---- Words

  function plural(n, one, several) {
    return n === 1 ? `1 ${one}` : `${n.toLocaleString("en")} ${several}`;
  }

  // visible writes characters as escapes that would not be seen, or that would change
  // the order of others, as the server does in the page.
  function visible(text) {
    return String(text).replace(/(?![\n\t])[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu,
      (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  }

  // ago has the words of the server's.
  function ago(at) {
    const seconds = Math.floor((now() - at) / 1000);
    if (seconds < -60) return "in the future";
    if (seconds < 60) return "just now";
    if (seconds < 3600) return plural(Math.floor(seconds / 60), "minute", "minutes") + " ago";
    if (seconds < 172800) return plural(Math.floor(seconds / 3600), "hour", "hours") + " ago";
    const days = Math.floor(seconds / 86400);
    if (days < 730) return plural(days, "day", "days") + " ago";
    return plural(Math.floor(days / 365), "year", "years") + " ago";
  }

  function tellAges() {
    for (const age of document.querySelectorAll("[data-at]")) {
      const text = ago(Date.parse(age.dataset.at));
      if (age.textContent !== text) age.textContent = text;
    }
  }

  // The time of where the reader is, for the mouse.
  document.addEventListener("mouseover", (event) => {
    const time = event.target.closest("time");
    if (time) time.title = new Date(time.dateTime).toLocaleString();
  });

  function duration(nanoseconds) {
    const seconds = nanoseconds / 1e9;
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    if (seconds < 120) return `${Math.round(seconds)} s`;
    return `${Math.round(seconds / 60)} min`;
  }

  // ---- Messages

  // say shows a message until it is dismissed. There is one region for what went
  // well and one for what did not, because a screen reader interrupts for the latter.
  function say(good, heading, ...details) {
    const region = byId(good ? "messages" : "problems");
    const text = make("div", {}, make("strong", { textContent: visible(heading) }));
    for (const detail of details) {
      if (Array.isArray(detail)) {
        text.append(make("ul", {}, ...detail.map((line) => make("li", { textContent: visible(line) }))));
      } else if (detail) {
        text.append(make("p", { textContent: visible(detail) }));
      }
    }
    const dismiss = make("button", { type: "button", textContent: "Dismiss" });
    const message = make("div", { className: `message ${good ? "good" : "bad"}` }, text, dismiss);
    dismiss.addEventListener("click", () => {
      const next = message.nextElementSibling || message.previousElementSibling;
      message.remove();
      (next?.querySelector("button") || byId("snapshots")).focus();
    });
    region.prepend(message);
    while (region.children.length > 3) region.lastElementChild.remove();
  }

  // sayProblem shows an error: a problem document, or whatever else was caught.
  function sayProblem(what, error) {
    const problem = error.problem || { title: "The server did not answer", detail: error.message };
    say(false, `${what}: ${problem.title}`, problem.detail, shorten(problem.report?.errors));
  }

  function shorten(lines) {
    if (!lines?.length) return "";
    const most = 20;
    return lines.length > most ? [...lines.slice(0, most), `and ${lines.length - most} more`] : lines;
  }

  // ---- Requests

  // ask sends a request, and returns the answer and its JSON. It throws an error
  // with the problem document if the server refuses.
  async function request(method, path, { json, body, headers } = {}) {
    const options = { method, headers: { Accept: "application/json", ...headers } };
    if (json !== undefined) {
      options.body = JSON.stringify(json);
      options.headers["Content-Type"] = "application/json";
    } else if (body) {
      options.body = body;
    }
    const response = await fetch(base + path, options);
    const text = await response.text();
    let parsed = null;
    try {
      parsed = text ? JSON.parse(text) : null;
    } catch {
      // Not from the handler: a proxy's page, for example.
    }
    if (!response.ok) {
      const error = new Error(`status ${response.status}`);
      error.problem = parsed?.title ? parsed : { title: `The server answered ${response.status}`, detail: text.slice(0, 300) };
      throw error;
    }
    return { response, value: parsed };
  }

  // start begins an operation that goes on if this page is closed. Events tell what
  // becomes of it.
  async function start(what, method, path, json) {
    try {
      const { response, value } = await request(method, path, { json, headers: { Prefer: "respond-async" } });
      if (response.status === 202) {
        mine.set(value.id, what);
        seen(operations.get(value.id)?.ended_at ? operations.get(value.id) : value);
      }
    } catch (error) {
      sayProblem(what, error);
    }
  }

  // ---- Operations

  const running = byId("running");
  const kinds = JSON.parse(running.dataset.kinds);
  const phases = JSON.parse(running.dataset.phases);
  const operations = new Map(); // by id: the last that is known
  const mine = new Map(); // by id: what this page asked for, until it has been told

  // nameOf has the words of the server's.
  function nameOf({ kind, stamp }) {
    const what = stamp || (kind === "create" || kind === "import" ? "a snapshot" : "");
    return visible(`${kinds[kind] || kind} ${what}`.trim());
  }

  // seen takes note of an operation as an event or an answer describes it.
  function seen(operation) {
    const known = operations.get(operation.id);
    // The answer to the request that began it, or a list, may be older than an event.
    if (known?.ended_at) {
      operation = known;
    } else if (known?.progress && !(operation.progress?.share >= known.progress.share)) {
      operation = { ...operation, progress: known.progress };
    }
    operations.set(operation.id, { ...known, ...operation });
    if (operation.ended_at) {
      row(operation.id)?.remove();
      tell(operation);
      if (!known?.ended_at) refresh();
    } else {
      draw(operation);
    }
    arrange();
  }

  const row = (id) => running.querySelector(`[data-id="${CSS.escape(id)}"]`);

  // draw shows how far an operation is.
  function draw(operation) {
    let item = row(operation.id);
    if (!item) {
      const cancel = make("button", { type: "button", textContent: "Cancel" });
      cancel.dataset.cancel = operation.id;
      item = make("li", {},
        make("span", { className: "what" }), make("progress", { max: 1 }), make("span", { className: "how" }), cancel);
      item.dataset.id = operation.id;
      running.append(item);
    }
    const [what, bar, how] = item.children;
    what.textContent = bar.ariaLabel = nameOf(operation);
    item.querySelector("button")?.setAttribute("aria-label", `Cancel: ${nameOf(operation)}`);
    const progress = operation.progress;
    if (!progress) {
      bar.removeAttribute("value");
      how.textContent = "starting";
      return;
    }
    bar.value = progress.share;
    how.textContent = `${phases[progress.phase] || progress.phase}, ${Math.floor(progress.share * 100)} %`;
    item.dataset.phase = progress.phase;
  }

  function arrange() {
    byId("operations").classList.toggle("idle", !running.children.length && !live("ended").querySelector("li"));
  }

  // tell says what became of an operation that this page began.
  async function tell(operation) {
    const what = mine.get(operation.id);
    if (what === undefined) return;
    mine.delete(operation.id);
    if (operation.problem) {
      sayProblem(what, { problem: operation.problem });
      return;
    }
    try {
      if (operation.result_omitted) operation = (await request("GET", `operations/${operation.id}`)).value;
    } catch {
      operation.result = null; // it is done; only the details are missing
    }
    tellResult(operation);
  }

  const results = {
    create: (r) => [true, `Snapshot ${r.stamp} was created.`,
      r.cost ? `It took ${duration(r.cost.duration_ns)}; ingestion waited for ${duration(r.cost.guarded_ns)}.` : ""],
    validate: (r) => [r.valid, r.valid ? `Snapshot ${r.stamp} is valid.` : `Snapshot ${r.stamp} is not valid.`,
      shorten(r.errors), shorten(r.notes)],
    drill: (r) => [true, `Snapshot ${r.stamp} was restored into a scratch directory and checked.`,
      plural(r.files, "file", "files"), shorten(r.findings), shorten(r.notes)],
    protect: (r) => [true, r.protected ? `Snapshot ${r.stamp} is protected.` : `Snapshot ${r.stamp} is not protected any more.`],
    import: (r) => [true, `Snapshot ${r.stamp} was imported.`],
    restore: (r) => [true, `Snapshot ${r.stamp} was restored.`,
      r.safety_stamp ? `The store as it was before is in snapshot ${r.safety_stamp}.` : "",
      r.set_aside?.length ? [...r.set_aside.map((path) => `set aside: ${path}`)] : ""],
    prune: (r) => [true, `${plural(r.removed.length, "snapshot was", "snapshots were")} removed.`,
      shorten(r.remains?.map((x) => `${x.path} remains: ${x.reason}`))],
  };

  function tellResult({ kind, stamp, result }) {
    if (result && results[kind]) {
      say(...results[kind](result));
    } else if (kind === "remove") {
      say(true, `Snapshot ${stamp} was removed.`);
    } else {
      say(true, `Done: ${nameOf({ kind, stamp })}.`);
    }
  }

  // reconcile compares what is shown with what the server knows, after events may
  // have been missed.
  async function reconcile() {
    // What begins while the answer is on its way is not in it.
    const before = [...running.children];
    const asked = [...mine];
    const { value } = await request("GET", "operations");
    const known = new Set(value.map((operation) => operation.id));
    for (const item of before) {
      if (!known.has(item.dataset.id)) item.remove();
    }
    for (const [id, what] of asked) {
      if (!known.has(id) && mine.delete(id)) {
        say(false, `${what}: the server was restarted meanwhile`, "Look at the snapshots to see what became of it.");
      }
    }
    const shown = new Set([...live("ended").querySelectorAll("[data-id]")].map((item) => item.dataset.id));
    const stale = value.some((operation) => operation.ended_at && !operations.has(operation.id) && !shown.has(operation.id));
    value.forEach(seen);
    arrange();
    return stale;
  }

  // ---- Events

  const connection = byId("connection");
  let pause = 1000; // until the next attempt, in milliseconds
  let waiting = 0;
  let source = null;

  function connect() {
    clearTimeout(waiting);
    source?.close();
    source = new EventSource(base + "events");
    const opened = source;
    const lost = () => {
      opened.close();
      if (connection.dataset.state !== "lost") {
        connection.dataset.state = "lost";
        connection.textContent = "no connection to the server; trying again";
      }
      waiting = setTimeout(connect, pause);
      pause = Math.min(pause * 2, 15000);
    };
    source.addEventListener("error", lost);
    source.addEventListener("open", async () => {
      const again = connection.dataset.state === "lost";
      pause = 1000;
      connection.dataset.state = "live";
      connection.textContent = "live";
      try {
        if (await reconcile() || again) refresh();
      } catch {
        // The connection that was just opened is gone; the source says so, too.
      }
    });
    source.addEventListener("operation", (event) => seen(JSON.parse(event.data)));
    source.addEventListener("progress", (event) => {
      const report = JSON.parse(event.data);
      const known = operations.get(report.id);
      if (!known?.ended_at) seen({ ...known, ...report });
    });
    source.addEventListener("reset", () => reconcile().then(refresh, () => {}));
  }

  // ---- The parts that the server renders

  let refreshing = false;
  let again = false;
  let pressed = false;

  // held reports whether the reader is at something that a refresh would take away: a
  // menu that is open, or whatever the pointer is pressed on.
  const held = () => pressed || document.querySelector(".menu:popover-open");

  addEventListener("pointerdown", () => { pressed = true; }, true);
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, () => {
      pressed = false;
      if (again) setTimeout(refresh); // after the click
    }, true);
  }

  // refresh gets the page again and takes over its live parts, as soon as the reader
  // is at none of them.
  async function refresh() {
    again = true;
    if (refreshing || held()) return;
    refreshing = true;
    try {
      while (again) {
        again = false;
        const response = await fetch(location.href, { headers: { Accept: "text/html" } });
        if (!response.ok) break;
        const next = new DOMParser().parseFromString(await response.text(), "text/html");
        if (!next.getElementById("as-of")) break; // another page: to sign in, for example
        if (held()) {
          again = true;
          break;
        }
        takeOver(next);
      }
    } catch {
      // The server is gone; when it is back, the page is got again.
    } finally {
      refreshing = false;
    }
  }

  function takeOver(next) {
    const focused = document.activeElement?.closest("[data-live]") && describe(document.activeElement);
    const unfolded = [...document.querySelectorAll("tr:has(details[open])")].map((tr) => tr.dataset.stamp);
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = next.querySelector(`[data-live="${part.dataset.live}"]`);
      if (other) part.replaceChildren(...other.childNodes);
    }
    byId("as-of").replaceWith(next.getElementById("as-of"));
    for (const stamp of unfolded) {
      const details = rowOf(stamp)?.querySelector("details");
      if (details) details.open = true;
    }
    tellAges();
    if (filter.value) applyFilter();
    arrange();
    if (focused) find(focused).focus({ preventScroll: true });
  }

  const rowOf = (stamp) => document.querySelector(`tr[data-stamp="${CSS.escape(stamp)}"]`);

  // describe returns by what an element is found again that takes the place of this
  // one, and find finds it: in the row of the same snapshot, or else the heading.
  const describe = (element) => ({ stamp: element.closest("tr")?.dataset.stamp, tag: element.tagName });

  function find({ stamp, tag }) {
    return (stamp && rowOf(stamp)?.querySelector(tag)) || byId("snapshots");
  }

  // ---- The filter

  const filter = byId("filter");

  function applyFilter() {
    const wanted = filter.value.trim().toLowerCase();
    const rows = [...document.querySelectorAll("tbody tr")];
    let found = 0;
    for (const tr of rows) {
      const text = [...tr.querySelectorAll("th, [data-label]")].map((cell) => cell.textContent).join(" ").toLowerCase();
      tr.hidden = !text.includes(wanted);
      if (!tr.hidden) found++;
    }
    byId("found").textContent = wanted ? `${found} of ${rows.length}` : "";
  }

  // ---- Dialogs

  // question asks before something is destroyed. If typed is set, the answer is yes
  // only after that was typed.
  function question({ heading, text, yes, typed }) {
    const dialog = byId("ask");
    const input = byId("ask-typed");
    byId("ask-heading").textContent = heading;
    byId("ask-text").replaceChildren(...text);
    byId("ask-yes").textContent = yes;
    byId("ask-type").hidden = !typed;
    byId("ask-type").querySelector("label").textContent = typed ? `Type ${typed} to go on` : "";
    input.value = "";
    const check = () => { byId("ask-yes").disabled = Boolean(typed) && input.value.trim() !== typed; };
    check();
    input.addEventListener("input", check);
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        input.removeEventListener("input", check);
        resolve(dialog.returnValue === "yes");
      }, { once: true });
    });
  }

  const paragraph = (text) => make("p", { textContent: text });

  // known returns what the row says about a snapshot, for a question about it.
  function known(stamp) {
    const tr = rowOf(stamp);
    const cell = (label) => tr?.querySelector(`[data-label="${label}"]`)?.innerText.replace(/\s+/g, " ").trim() || "unknown";
    const note = tr?.querySelector(".note")?.textContent.trim().slice(0, 200);
    const created = tr?.querySelector('[data-label="Created"] time');
    return make("ul", {},
      make("li", { textContent: created ? `Created: ${created.textContent} UTC, ${ago(Date.parse(created.dateTime))}` : "Created: unknown" }),
      make("li", { textContent: `Size: ${cell("Size")}` }),
      make("li", { textContent: `Validated: ${cell("Validated")}` }),
      ...(note ? [make("li", { textContent: `Note: ${note}` })] : []));
  }

  const actions = {
    validate: (stamp, path) => start(`Validate ${stamp}`, "GET", `${path}/validate`),
    drill: (stamp, path) => start(`Rehearse ${stamp}`, "POST", `${path}/drill`),
    protect: (stamp, path) => start(`Protect ${stamp}`, "POST", `${path}/protect`, { protected: true }),
    unprotect: (stamp, path) => start(`End the protection of ${stamp}`, "POST", `${path}/protect`, { protected: false }),
    async remove(stamp, path) {
      const yes = await question({
        heading: `Remove snapshot ${stamp}?`, yes: "Remove",
        text: [paragraph("This snapshot will be deleted for good:"), known(stamp)],
      });
      if (yes) await start(`Remove ${stamp}`, "DELETE", path);
    },
    async restore(stamp, path) {
      const yes = await question({
        heading: `Restore snapshot ${stamp}?`, yes: "Restore", typed: stamp,
        text: [
          paragraph("The present store will be replaced by this snapshot. What was written to the store since then will be gone from it; a safety snapshot keeps it."),
          known(stamp),
        ],
      });
      if (yes) await start(`Restore ${stamp}`, "POST", `${path}/restore`, {});
    },
  };

  async function create(form) {
    await start("Create a snapshot", "POST", "", {
      include_chroma: form.include_chroma.checked, verify: form.verify.checked, note: form.note.value,
    });
    form.reset();
  }

  async function importArchive(form) {
    const file = form.file.files[0];
    form.reset();
    try {
      const { value } = await request("POST", "import", { body: file, headers: { "Content-Type": "application/x-tar" } });
      tellResult({ kind: "import", stamp: value.stamp, result: value });
    } catch (error) {
      sayProblem(`Import ${file.name}`, error);
    }
  }

  // prune shows first what would be removed.
  async function prune(form) {
    const rules = {};
    for (const input of form.querySelectorAll("input")) {
      if (input.value && input.value !== "0") rules[input.name] = input.type === "number" ? Number(input.value) : input.value;
    }
    let preview;
    try {
      preview = (await request("POST", "prune", { json: { ...rules, dry_run: true } })).value;
    } catch (error) {
      sayProblem("Preview a prune", error);
      return;
    }
    if (!preview.removed.length) {
      say(true, "There is nothing to prune.", `The rules keep ${plural(preview.kept.length, "snapshot", "snapshots")}.`);
      return;
    }
    const lines = preview.removed.map((stamp) => {
      const size = rowOf(stamp)?.querySelector('[data-label="Size"]')?.textContent.trim();
      return make("li", { textContent: visible(size ? `${stamp}, ${size}` : stamp) });
    });
    const yes = await question({
      heading: `Remove ${plural(preview.removed.length, "snapshot", "snapshots")}?`, yes: "Remove",
      text: [paragraph("These will be deleted for good:"), make("ul", { tabIndex: 0, ariaLabel: "Snapshots that go" }, ...lines),
        paragraph(`${plural(preview.kept.length, "snapshot stays", "snapshots stay")}.`)],
    });
    if (yes) await start("Prune", "POST", "prune", { ...rules, dry_run: false });
  }

  const forms = { create, import: importArchive, prune };

  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close("yes");
      forms[dialog.id]?.(event.target);
    });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { open, close, do: action, cancel } = button.dataset;
    if (open) byId(open).showModal();
    if (close !== undefined) button.closest("dialog").close();
    if (cancel) request("DELETE", `operations/${cancel}`).catch((error) => sayProblem("Cancel", error));
    if (action) {
      const menu = button.closest(".menu");
      menu.hidePopover(); // the focus goes back to its button, and from there to a dialog and back
      const { stamp } = button.closest("tr").dataset;
      actions[action](stamp, menu.dataset.path);
    }
  });

  // A menu that has closed holds nothing up any more. This event does not bubble.
  document.addEventListener("toggle", (event) => {
    if (event.target.matches(".menu") && event.newState === "closed" && again) refresh();
  }, true);

  root.classList.add("js");
  filter.addEventListener("input", applyFilter);
  if (filter.value) applyFilter(); // a browser restores it
  tellAges();
  setInterval(tellAges, 30000);
  // Other processes make no events here.
  const look = () => { if (!document.hidden) refresh(); };
  setInterval(look, 60000);
  document.addEventListener("visibilitychange", look);
  addEventListener("online", connect);
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  connect();
})();
