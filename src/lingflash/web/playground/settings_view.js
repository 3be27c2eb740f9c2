// The settings of one conversation: what the body of its requests is made from.
import { html, View } from "../lib/html.js";
import { Field } from "../lib/dialog.js";
import { server } from "../lib/server.js";
import { FORMATS, NUMBERS } from "./request.js";

const TOOL_CHOICES = { auto: "As it likes", none: "None", required: "At least one" };

export class SettingsView extends View {
  stores() {
    return [this.props.pane, server];
  }

  render({ pane, name }) {
    const { settings, problems } = pane;
    const id = (field) => `${name}-${field}`;
    const attributes = (field) => ({
      id: id(field),
      value: settings[field],
      "aria-invalid": Boolean(problems[field]),
      "aria-describedby": problems[field] ? `${id(field)}-problems` : undefined,
      onInput: (event) => pane.set(field, event.target.value),
    });
    const area = (field, label, rows, note, extra = {}) =>
      html`<${Field} id=${id(field)} label=${label} problems=${problems[field]} note=${note}>
        <textarea rows=${rows} spellcheck=${false} ...${attributes(field)} ...${extra}></textarea>
      <//>`;
    const choice = (field, label, options) =>
      html`<${Field} id=${id(field)} label=${label} problems=${problems[field]}>
        <select ...${attributes(field)}>
          ${Object.entries(options).map(
            ([value, text]) =>
              html`<option value=${value} selected=${value === settings[field]}>${text}</option>`,
          )}
        </select>
      <//>`;
    const tick = (field, label) =>
      html`<label class="tick">
        <input
          type="checkbox"
          checked=${settings[field]}
          onChange=${(event) => pane.set(field, event.target.checked)}
        />
        ${label}
      </label>`;
    const models = Object.fromEntries(server.models.map(({ id: model }) => [model, model]));
    return html`<form class="settings" onSubmit=${(event) => event.preventDefault()}>
      ${server.models.length > 1 && choice("model", "Model", { "": "The server's first", ...models })}
      ${area("system", "System prompt", 3)} ${tick("thinking", "Think before answering")}
      <h3>Tools</h3>
      ${area("tools", "Tools, as JSON", settings.tools ? 10 : 3, "", {
        class: "code",
        placeholder: '[{"type": "function", "function": {"name": …, "parameters": …}}]',
      })}
      ${settings.tools.trim() &&
      html`${choice("tool_choice", "Which it must call", TOOL_CHOICES)}
      ${tick("parallel_tool_calls", "Several calls at once")}`}
      <h3>Form of the answer</h3>
      ${choice("format", "The answer is", FORMATS)}
      ${settings.format === "json_schema" && area("schema", "JSON schema", 10, "", { class: "code" })}
      ${settings.format === "regex" && area("regex", "Regular expression", 2, "Rust's syntax.")}
      ${settings.format === "choice" && area("choices", "Texts, one a line", 4)}
      <h3>Sampling</h3>
      <div class="numbers">
        ${Object.entries(NUMBERS).map(
          ([field, { label }]) =>
            html`<${Field} id=${id(field)} label=${label} problems=${problems[field]}>
              <input type="text" inputmode="decimal" autocomplete="off" ...${attributes(field)} />
            <//>`,
        )}
      </div>
      ${area("stop", "Stop texts, one a line", 2)}
      <p class="note">What is empty is left to the server.</p>
    </form>`;
  }
}
