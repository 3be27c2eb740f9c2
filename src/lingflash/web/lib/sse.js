// Server-sent events of an answer, comments too: the browser's own reader can only GET.

const BLANK_LINE = /\r\n\r\n|\n\n|\r\r/;

/** Yield {data} or {comment} as they come. Throws what reading the body throws. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(BLANK_LINE);
    rest = parts.pop();
    for (const part of parts) {
      const event = read(part);
      if (event) yield event;
    }
  }
}

function read(part) {
  if (part.startsWith(":")) return { comment: part.slice(1).trim() };
  const data = [];
  for (const line of part.split(/\r\n|\n|\r/)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
  }
  return data.length ? { data: data.join("\n") } : null;
}
