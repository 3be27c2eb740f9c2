// A model's text, drawn while it grows. It is never HTML: tags in it are letters, pictures are
// their addresses, and what Markdown makes of the rest passes DOMPurify as a tree of nodes.
import { Component, createRef, html } from "./html.js";
import { Marked } from "../vendor/marked.esm.js";

// A block that is longer stays plain while it grows, and one that is much longer for good: drawing
// it again and again would hold the page up.
const LONG_CHARS = 3000;
const HUGE_CHARS = 16000;

const ALLOWED_TAGS =
  "p br strong em del code pre ul ol li blockquote h1 h2 h3 h4 h5 h6 hr table thead tbody tr th td a".split(" ");
const ALLOWED_ATTR = ["href", "title", "align", "start", "target", "rel"];

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (letter) => escapes[letter]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: (token) => escaped(token.text ?? token.raw),
    image: (token) => escaped(token.raw),
    link(token) {
      const text = this.parser.parseInline(token.tokens);
      if (!/^(https?|mailto):/i.test(token.href)) return `${text} (${escaped(token.href)})`;
      return `<a href="${escaped(token.href)}" target="_blank" rel="noopener noreferrer">${text}</a>`;
    },
    checkbox: (token) => (token.checked ? "[x] " : "[ ] "),
  },
});

function nodes(tokens, links) {
  const list = tokens.slice();
  list.links = links;
  return window.DOMPurify.sanitize(marked.parser(list), {
    ALLOWED_TAGS,
    ALLOWED_ATTR,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

/** Draws a text that only grows; blocks that are complete are drawn once. */
export class GrowingText {
  constructor(root) {
    this.root = root;
    this.clear();
  }

  clear() {
    this.root.replaceChildren();
    this.tail = document.createElement("div");
    this.root.append(this.tail);
    this.text = "";
    this.settled = 0;
    this.plain = null;
  }

  set(text, isDone) {
    text = text.replace(/\r\n?/g, "\n");
    if (!text.startsWith(this.text)) this.clear();
    this.text = text;
    const rest = text.slice(this.settled);
    if (rest.length > (isDone ? HUGE_CHARS : LONG_CHARS)) {
      this.#drawPlain(rest);
      return;
    }
    const tokens = marked.lexer(rest);
    const isWhole = tokens.reduce((sum, token) => sum + token.raw.length, 0) === rest.length;
    let open = tokens.length - 1;
    while (open > 0 && tokens[open].type === "space") open -= 1;
    if (isWhole && open > 0) {
      const complete = tokens.slice(0, open);
      this.tail.before(nodes(complete, tokens.links));
      this.settled += complete.reduce((sum, token) => sum + token.raw.length, 0);
    }
    this.plain = null;
    this.tail.replaceChildren(nodes(isWhole ? tokens.slice(open) : tokens, tokens.links));
  }

  #drawPlain(rest) {
    if (this.plain === null) {
      this.plain = document.createElement("div");
      this.plain.className = "plain-text";
      this.plain.append("");
      this.tail.replaceChildren(this.plain);
      this.plainChars = 0;
    }
    this.plain.firstChild.appendData(rest.slice(this.plainChars));
    this.plainChars = rest.length;
    // What ends with a line need not be laid out with what follows.
    const cut = rest.lastIndexOf("\n");
    if (rest.length > 2 * LONG_CHARS && cut > 0) {
      this.plain.firstChild.data = rest.slice(0, cut);
      this.tail.before(this.plain);
      this.settled += cut + 1;
      this.plain = null;
      this.tail.replaceChildren();
    }
  }
}

/** The text of an answer; `of` is a store with `text` and `isDone`. */
export class Markdown extends Component {
  root = createRef();

  componentDidMount() {
    this.drawing = new GrowingText(this.root.current);
    this.draw();
    this.stop = this.props.of.watch(() => this.draw());
  }

  componentWillUnmount() {
    this.stop();
  }

  shouldComponentUpdate() {
    return false;
  }

  draw() {
    const { text, isDone } = this.props.of;
    if (text === this.drawn && isDone === this.wasDone) return;
    [this.drawn, this.wasDone] = [text, isDone];
    this.drawing.set(text, isDone);
  }

  render() {
    return html`<div class="markdown" ref=${this.root} />`;
  }
}
