// Dialogs, buttons that copy, and text in boxes.
import { Component, createRef, html } from "./html.js";

/** A dialog that is open while it is there; Escape and the button close it. */
export class Dialog extends Component {
  box = createRef();

  componentDidMount() {
    this.box.current.showModal();
  }

  render({ title, onClose, children }) {
    return html`<dialog ref=${this.box} onClose=${onClose} aria-label=${title}>
      <header>
        <h2>${title}</h2>
        <button type="button" class="quiet" onClick=${() => this.box.current.close()}>Close</button>
      </header>
      ${children}
    </dialog>`;
  }
}

export class CopyButton extends Component {
  async copy() {
    try {
      await navigator.clipboard.writeText(this.props.text());
      this.setState({ said: "Copied" });
    } catch {
      this.setState({ said: "Your browser does not allow it" });
    }
    setTimeout(() => this.setState({ said: "" }), 2000);
  }

  render({ label = "Copy" }, { said }) {
    return html`<button type="button" class="quiet" onClick=${() => this.copy()}>
      <span aria-live="polite">${said || label}</span>
    </button>`;
  }
}

/** A field with its label, and what is wrong with it. */
export function Field({ label, problems = [], note, children, id }) {
  return html`<div class=${problems.length ? "field has-problem" : "field"}>
    <label for=${id}>${label}</label>
    ${children} ${note && html`<p class="note">${note}</p>`}
    ${problems.length > 0 &&
    html`<div class="problems" id=${`${id}-problems`} role="status">
      <ul>
        ${problems.map((each) => html`<li>${each}</li>`)}
      </ul>
    </div>`}
  </div>`;
}
