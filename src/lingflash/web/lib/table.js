// Tables of records, and files of them.
import { html } from "./html.js";

/**
 * Records as a table that scrolls by itself where it is too wide.
 *
 * columns: [{title, of, isNumber}], `of` gives what stands in a cell; an empty text is no cell.
 * stacks: where the window is narrow the cells of a row stand below each other.
 */
export function Table({ title, columns, rows, empty, stacks = false }) {
  if (!rows.length) return html`<p class="note">${empty}</p>`;
  const kind = ({ isNumber }) => (isNumber ? "number" : undefined);
  return html`<div class="scroll" role="region" aria-label=${title} tabindex="0">
    <table class=${stacks ? "records stacks" : "records"}>
      <thead>
        <tr>
          ${columns.map((each) => html`<th scope="col" class=${kind(each)}>${each.title}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr>
              ${columns.map(
                (each) => html`<td class=${kind(each)} data-of=${each.title}>${each.of(row)}</td>`,
              )}
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** Names and values in one line. */
export function Facts({ items }) {
  return html`<dl class="facts">
    ${items.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** Have the browser save something as a file. */
export function saveFile(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
