// $settings
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { readFileSync } from "node:fs";
import { z } from "zod";

const parameters = {
  type: "object",
  properties: {
    city: { type: "string", description: "name of the city" },
    day: { type: "string", enum: ["today", "tomorrow"] },
  },
  required: ["city"],
};
const about = { name: "get_weather", description: "Get the weather forecast for a city", parameters };
const weather = '{"forecast": "light rain", "high": 17}';
const question = (how) => ({
  role: "user",
  content: `What will the weather be like in Lisbon tomorrow?${process.argv[2] ?? ` (${how})`}`,
});

const runnable = { type: "function", function: { ...about, function: () => weather, parse: JSON.parse } };
const ask = { model, temperature: 0, tools: [runnable] };
let runner = client.chat.completions.runTools({ ...ask, messages: [question("runTools")] });
console.log(`runTools: ${await runner.finalContent()}`);
runner = client.chat.completions.runTools({ ...ask, messages: [question("streamed")], stream: true });
console.log(`runTools streamed: ${await runner.finalContent()}`);

async function answerResponses(name, output, streamed) {
  let input = [question(name)];
  const tools = [{ type: "function", strict: false, ...about }];
  for (let turn = 0; turn < 5; turn++) {
    const body = { model, input, tools, temperature: 0 };
    const response = streamed
      ? await client.responses.stream(body).finalResponse()
      : await client.responses.parse(body);
    // All that the helpers add to the items goes back.
    input = [...input, ...response.output];
    const calls = response.output.filter((item) => item.type === "function_call");
    if (calls.length === 0) return console.log(`${name}: ${response.output_text}`);
    for (const { call_id } of calls) input.push({ type: "function_call_output", call_id, output });
  }
}
await answerResponses("responses.parse", weather, false);
await answerResponses("responses.stream", weather, true);

if (process.argv[2] === undefined) {
  const image_url = `data:image/png;base64,${readFileSync("dot.png").toString("base64")}`;
  const content = [{ type: "input_text", text: weather }, { type: "input_image", image_url, detail: "auto" }];
  await answerResponses("picture", content, false);

  const schema = z.object({ kind: z.string(), legs: z.number() });
  const messages = [{ role: "user", content: "Name an animal." }];
  const form = { model, messages, response_format: zodResponseFormat(schema, "animal") };
  const parsed = (await client.chat.completions.parse(form)).choices[0].message;
  console.log(`parse: ${JSON.stringify(parsed.parsed)}`);
  messages.push(parsed, { role: "user", content: "Name an animal, another one." });
  const again = (await client.chat.completions.stream(form).finalMessage());
  console.log(`stream: ${JSON.stringify(again.parsed)}`);
  messages.push(again, { role: "user", content: "Hello" });
  await client.chat.completions.create({ model, messages });

  const text = { format: zodTextFormat(schema, "animal") };
  const one = await client.responses.parse({ model, input: "Name an animal.", text });
  console.log(`responses: ${JSON.stringify(one.output_parsed)}`);
  const input = [{ role: "user", content: "Name an animal." }, ...one.output];
  await client.responses.create({ model, input: [...input, { role: "user", content: "Hello" }] });
}
