// A request as somebody would send it without this page. The key stands for itself.
import { Component, html } from "../lib/html.js";
import { CopyButton, Dialog } from "../lib/dialog.js";
import { server } from "../lib/server.js";

// Arguments of the openai package's `create`; what is not one of them goes into extra_body.
const OPENAI_ARGUMENTS = new Set([
  "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p",
  "presence_penalty", "frequency_penalty", "max_tokens", "seed", "stop", "reasoning_effort",
  "response_format",
]);

const base = () => `${location.origin}/v1`;
const needsKey = () => server.about?.needs_key;

export function asCurl(body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", `'\\''`);
  const key = needsKey() ? `  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n` : "";
  return `curl ${base()}/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${key}  -d '${json}'\n`;
}

function pythonLiteral(value, indent = "    ") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const entries = isList
    ? value.map((each) => pythonLiteral(each, inner))
    : Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${pythonLiteral(v, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = `${open}${entries.join(", ")}${close}`;
  if (short.length < 80 && !short.includes("\n")) return short;
  return `${open}\n${entries.map((each) => `${inner}${each},\n`).join("")}${indent}${close}`;
}

export function asPython(body) {
  const known = [];
  const extra = {};
  for (const [name, value] of Object.entries({ model: server.models[0]?.id ?? "", ...body })) {
    if (OPENAI_ARGUMENTS.has(name)) known.push(`    ${name}=${pythonLiteral(value)},\n`);
    else extra[name] = value;
  }
  if (Object.keys(extra).length) known.push(`    extra_body=${pythonLiteral(extra)},\n`);
  const key = needsKey() ? "" : ', api_key="none"';
  return `from openai import OpenAI

client = OpenAI(base_url="${base()}"${key})
answer = client.chat.completions.create(
${known.join("")})
print(answer.choices[0].message)
`;
}

export function asJavaScript(body) {
  const key = needsKey() ? "    authorization: `Bearer ${process.env.OPENAI_API_KEY}`,\n" : "";
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return `const answer = await fetch("${base()}/chat/completions", {
  method: "POST",
  headers: {
    "content-type": "application/json",
${key}  },
  body: JSON.stringify(${json}),
});
const { choices } = await answer.json();
console.log(JSON.stringify(choices[0].message, null, 2));
`;
}

const KINDS = { curl: asCurl, Python: asPython, JavaScript: asJavaScript };

export class CodeDialog extends Component {
  state = { kind: "curl" };

  render({ pane, draft, onClose }, { kind }) {
    const code = KINDS[kind](pane.lastBody(draft));
    const isWrong = Object.keys(pane.problems).length > 0;
    return html`<${Dialog} title="This request as code" onClose=${onClose}>
      <div class="row" role="group" aria-label="Language">
        ${Object.keys(KINDS).map(
          (each) =>
            html`<button
              type="button"
              aria-pressed=${each === kind}
              onClick=${() => this.setState({ kind: each })}
            >
              ${each}
            </button>`,
        )}
        <${CopyButton} text=${() => code} />
      </div>
      ${isWrong &&
      html`<p class="trouble" role="alert">
        Something in the settings is wrong, so the server will refuse this.
      </p>`}
      <pre class="code" tabindex="0">${code}</pre>
      ${needsKey() && html`<p class="note">It reads the key from OPENAI_API_KEY.</p>`}
    <//>`;
  }
}
