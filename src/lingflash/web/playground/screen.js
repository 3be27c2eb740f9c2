// The playground: one conversation, or two side by side, and their settings.
import { createRef, html, View } from "../lib/html.js";
import { server } from "../lib/server.js";
import { saveFile } from "../lib/table.js";
import { CodeDialog } from "./code.js";
import { EXAMPLES } from "./examples.js";
import { AnswerMessage, UserMessage } from "./message.js";
import { session } from "./session.js";
import { SettingsView } from "./settings_view.js";

// How near to its end a conversation must be to stay there while it grows.
const FOLLOW_PX = 80;
const NAMES = ["A", "B"];

export class Playground extends View {
  state = { shown: 0, showsSettings: false, showsCode: false, fileProblem: "", draft: "" };
  file = createRef();

  stores() {
    return [session, server];
  }

  async load(event) {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) this.setState({ fileProblem: session.load(await file.text()), shown: 0 });
  }

  save() {
    const text = JSON.stringify(session.asFile(), null, 2);
    saveFile("conversation.json", text, "application/json");
  }

  try(example) {
    for (const pane of session.panes) {
      pane.load({ settings: example.settings, messages: [] });
      pane.say(example.message);
    }
  }

  render(_, { shown, showsSettings, showsCode, fileProblem, draft }) {
    const { panes } = session;
    const isTwo = panes.length === 2;
    const index = Math.min(shown, panes.length - 1);
    const set = (state) => () => this.setState(state);
    return html`<div class=${showsSettings ? "playground shows-settings" : "playground"}>
      <div class="conversations">
        <div class="row toolbar">
          <button type="button" onClick=${() => panes.forEach((pane) => pane.clear())}>New</button>
          <button type="button" aria-pressed=${isTwo} onClick=${() => session.compare(!isTwo)}>
            Compare
          </button>
          <button type="button" onClick=${set({ showsCode: true })}>Code</button>
          <button type="button" onClick=${() => this.save()}>Export</button>
          <button type="button" onClick=${() => this.file.current.click()}>Import</button>
          <input
            ref=${this.file}
            type="file"
            accept="application/json"
            hidden
            aria-label="Conversation file"
            onChange=${(event) => this.load(event)}
          />
          <button
            type="button"
            class="settings-toggle"
            aria-expanded=${showsSettings}
            onClick=${set({ showsSettings: !showsSettings })}
          >
            Settings
          </button>
        </div>
        ${fileProblem && html`<p class="trouble" role="alert">${fileProblem}</p>`}
        <div class=${isTwo ? "panes two" : "panes"}>
          ${panes.map(
            (pane, i) =>
              html`<${Conversation}
                key=${i}
                pane=${pane}
                name=${isTwo ? `Conversation ${NAMES[i]}` : "Conversation"}
                onExample=${i === 0 && ((example) => this.try(example))}
                onEdit=${(message) => this.setState({ draft: pane.takeBack(message) })}
              />`,
          )}
        </div>
        <${Composer}
          panes=${panes}
          draft=${draft}
          onDraft=${(text) => this.setState({ draft: text })}
          onProblem=${(i) => this.setState({ shown: i, showsSettings: true })}
        />
      </div>
      <aside aria-label="Settings">
        ${isTwo &&
        html`<div class="row" role="group" aria-label="Settings of">
          ${panes.map(
            (_pane, i) =>
              html`<button type="button" aria-pressed=${i === index} onClick=${set({ shown: i })}>
                Settings of ${NAMES[i]}
              </button>`,
          )}
        </div>`}
        <${SettingsView} key=${index} pane=${panes[index]} name=${`settings-${index}`} />
      </aside>
      ${showsCode &&
      html`<${CodeDialog}
        pane=${panes[index]}
        draft=${draft}
        onClose=${set({ showsCode: false })}
      />`}
    </div>`;
  }
}

class Conversation extends View {
  box = createRef();

  stores() {
    return [this.props.pane];
  }

  componentDidMount() {
    super.componentDidMount();
    const box = this.box.current;
    let isAtEnd = true;
    box.addEventListener("scroll", () => {
      isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < FOLLOW_PX;
    });
    this.following = new ResizeObserver(() => {
      if (isAtEnd) box.scrollTop = box.scrollHeight;
    });
    this.following.observe(box.firstElementChild);
  }

  componentWillUnmount() {
    super.componentWillUnmount();
    this.following.disconnect();
  }

  render({ pane, name, onExample, onEdit }) {
    return html`<section class="conversation" aria-label=${name} ref=${this.box} tabindex="0">
      <div>
        ${pane.messages.length === 0 && onExample && html`<${Examples} onExample=${onExample} />`}
        ${pane.messages.map((message) =>
          message.role === "user"
            ? html`<${UserMessage}
                key=${message.number}
                message=${message}
                onEdit=${() => onEdit(message)}
              />`
            : html`<${AnswerMessage} key=${message.number} answer=${message} pane=${pane} />`,
        )}
      </div>
    </section>`;
  }
}

function Examples({ onExample }) {
  return html`<div class="examples">
    <h2>Try one, or write below</h2>
    <ul>
      ${EXAMPLES.filter(({ wants }) => !wants || server.has(wants)).map(
        (example) =>
          html`<li>
            <button type="button" onClick=${() => onExample(example)} disabled=${server.state !== "ready"}>
              <strong>${example.title}</strong>
              <span>${example.about}</span>
            </button>
          </li>`,
      )}
    </ul>
  </div>`;
}

/** Where messages are written; what is sent goes to every pane. */
class Composer extends View {
  stores() {
    return [server, ...this.props.panes];
  }

  /** Why nothing can be sent now, or "". */
  get obstacle() {
    const { panes } = this.props;
    if (server.keyTrouble || !server.isOpen) return "The server asks for a key; give one above.";
    if (server.state !== "ready") return "The server is not ready; see above.";
    if (panes.some((pane) => pane.unanswered.length)) return "Answer the calls above first.";
    if (panes.some((pane) => Object.keys(problemsBeforeSending(pane)).length)) {
      return "Something in the settings is wrong.";
    }
    return "";
  }

  send() {
    const { panes, draft, onDraft, onProblem } = this.props;
    if (!draft.trim() || panes.some((pane) => pane.isBusy)) return;
    if (this.obstacle) {
      const wrong = panes.findIndex((pane) => Object.keys(problemsBeforeSending(pane)).length);
      if (wrong >= 0) onProblem(wrong);
      return;
    }
    onDraft("");
    for (const pane of panes) pane.say(draft);
  }

  render({ panes, draft, onDraft }) {
    const isBusy = panes.some((pane) => pane.isBusy);
    const onKeyDown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    };
    const onSubmit = (event) => {
      event.preventDefault();
      this.send();
    };
    return html`<form class="composer" onSubmit=${onSubmit}>
      <label class="hidden" for="composer">Message</label>
      <textarea
        id="composer"
        rows="2"
        placeholder="Write a message. Enter sends, Shift+Enter begins a line."
        value=${draft}
        onInput=${(event) => onDraft(event.target.value)}
        onKeyDown=${onKeyDown}
      ></textarea>
      ${isBusy
        ? html`<button type="button" class="main" onClick=${() => panes.forEach((pane) => pane.stop())}>
            Stop
          </button>`
        : html`<button type="submit" class="main">Send</button>`}
      ${this.obstacle && html`<p class="note" role="status">${this.obstacle}</p>`}
    </form>`;
  }
}

/** What the server said about a field may be put right by the next message; the rest may not. */
function problemsBeforeSending(pane) {
  const problems = { ...pane.problems };
  for (const [name, said] of Object.entries(pane.refused)) {
    problems[name] = problems[name].filter((each) => each !== said);
    if (!problems[name].length) delete problems[name];
  }
  return problems;
}
