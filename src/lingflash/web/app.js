// The page's frame: which screens there are, and whether the server can serve.
import { html, render, View } from "./lib/html.js";
import { server } from "./lib/server.js";
import { history } from "./dashboard/history.js";
import { Dashboard } from "./dashboard/screen.js";
import { Evidence } from "./evidence/screen.js";
import { Playground } from "./playground/screen.js";
import { Routes } from "./routes/screen.js";
import { Sandboxes } from "./sandboxes/screen.js";
import { Usage } from "./usage/screen.js";

const MODEL_KEY = {
  isThere: () => server.hasKey,
  text: () =>
    server.hasManagementKey
      ? "The key that is known manages others and runs no models; give one that does."
      : "This server asks for an API key.",
};
const READING_KEY = {
  isThere: () => server.hasKey || server.hasManagementKey,
  text: () => "A key sees its own use here; a management key sees that of all.",
};
const MANAGEMENT_KEY = {
  isThere: () => server.hasManagementKey,
  text: () => "This screen needs a management key.",
};

// By the names that `install_page` takes; the server says which of them it has.
const SCREENS = {
  playground: { title: "Playground", view: Playground, key: MODEL_KEY },
  dashboard: { title: "Dashboard", view: Dashboard, key: MODEL_KEY },
  usage: { title: "Usage", view: Usage, key: READING_KEY },
  routes: { title: "Routes", view: Routes, key: MANAGEMENT_KEY },
  evidence: { title: "Evidence", view: Evidence, key: MODEL_KEY },
  sandboxes: { title: "Sandboxes", view: Sandboxes, key: MODEL_KEY },
};

class App extends View {
  state = { screen: location.hash.slice(2) };

  stores() {
    return [server];
  }

  componentDidMount() {
    super.componentDidMount();
    addEventListener("hashchange", () => this.setState({ screen: location.hash.slice(2) }));
  }

  render(_, { screen }) {
    const names = (server.about?.screens ?? []).filter((name) => name in SCREENS);
    const shown = names.includes(screen) ? screen : names[0];
    return html`<header class="top">
        <h1>lingflash</h1>
        <nav aria-label="Screens">
          ${names.map(
            (name) =>
              html`<a href=${`#/${name}`} aria-current=${name === shown ? "page" : undefined}>
                ${SCREENS[name].title}
              </a>`,
          )}
        </nav>
        <${State} />
        ${(server.hasKey || server.hasManagementKey) &&
        html`<button type="button" class="quiet forget" onClick=${() => server.forgetKeys()}>
          Forget keys
        </button>`}
      </header>
      <${Notices} wants=${shown && SCREENS[shown].key} />
      <main>${shown && html`<${SCREENS[shown].view} key=${shown} />`}</main>`;
  }
}

const STATES = {
  connecting: "connecting",
  loading: "not ready",
  ready: "ready",
  offline: "not reachable",
};

function State() {
  const about = server.about && `${server.about.server} ${server.about.version}`;
  return html`<p class=${`state ${server.state}`} role="status">
    <span class="dot" aria-hidden="true"></span>${STATES[server.state]}
    ${about && html`<span class="about">${about}</span>`}
  </p>`;
}

function Notices({ wants }) {
  const wantsKey = server.about?.needs_key && wants && (!wants.isThere() || server.keyTrouble);
  const isUp = server.state === "ready" || server.state === "connecting";
  return html`${!isUp &&
    html`<p class=${`notice ${server.state}`} role="alert">
      ${server.reason} This page looks again every second.
    </p>`}
    ${wantsKey && html`<${KeyForm} text=${wants.text()} />`}`;
}

function KeyForm({ text }) {
  const use = (event) => {
    event.preventDefault();
    server.useKey(new FormData(event.target).get("key"));
    event.target.reset();
  };
  return html`<form class="notice key" onSubmit=${use}>
    <label for="key">${server.keyTrouble || text}</label>
    <input id="key" name="key" type="password" autocomplete="off" required />
    <button type="submit">Use it</button>
    <span class="note">It stays in this tab's memory until you leave.</span>
  </form>`;
}

render(html`<${App} />`, document.getElementById("app"));
server.follow();
history.follow();
