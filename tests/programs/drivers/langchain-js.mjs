// $settings
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { z } from "zod";

const weather = tool(async () => '{"forecast": "light rain", "high": 17}', {
  name: "get_weather",
  description: "Get the weather forecast for a city",
  schema: {
    type: "object",
    properties: {
      city: { type: "string", description: "name of the city" },
      day: { type: "string", enum: ["today", "tomorrow"] },
    },
    required: ["city"],
  },
});
const question = (how) =>
  `What will the weather be like in Lisbon tomorrow?${process.argv[2] ?? ` (${how})`}`;

async function collect(model, messages) {
  let whole;
  for await (const part of await model.stream(messages)) whole = whole ? whole.concat(part) : part;
  return whole;
}

for (const [name, model] of Object.entries({ chat, responses })) {
  const withTools = model.bindTools([weather]);
  for (const [how, ask] of [
    [name, (messages) => withTools.invoke(messages)],
    [`${name} streamed`, (messages) => collect(withTools, messages)],
  ]) {
    const messages = [new HumanMessage(question(how))];
    for (let turn = 0; turn < 5; turn++) {
      const answer = await ask(messages);
      messages.push(answer);
      if (answer.tool_calls.length === 0) {
        console.log(`${how}: ${answer.text}`);
        break;
      }
      for (const call of answer.tool_calls) {
        messages.push(new ToolMessage({ content: await weather.invoke(call.args), tool_call_id: call.id }));
      }
    }
  }
  if (process.argv[2] === undefined) {
    const form = model.withStructuredOutput(z.object({ kind: z.string(), legs: z.number() }), {
      method: "jsonSchema",
    });
    console.log(`${name} object: ${JSON.stringify(await form.invoke("Name an animal."))}`);
  }
}
