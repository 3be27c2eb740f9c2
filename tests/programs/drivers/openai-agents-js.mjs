// $settings
import { Agent, run, tool } from "@openai/agents";
import { z } from "zod";

const weather = tool({
  name: "get_weather",
  description: "Get the weather forecast for a city",
  strict: false,
  parameters: {
    type: "object",
    properties: {
      city: { type: "string", description: "name of the city" },
      day: { type: "string", enum: ["today", "tomorrow"] },
    },
    required: ["city"],
    additionalProperties: true,
  },
  execute: async () => '{"forecast": "light rain", "high": 17}',
});
const question = (how) =>
  `What will the weather be like in Lisbon tomorrow?${process.argv[2] ?? ` (${how})`}`;

for (const [name, model] of Object.entries({ chat, responses })) {
  const agent = new Agent({ name: "weather", model, tools: [weather], modelSettings: { temperature: 0 } });
  console.log(`${name}: ${(await run(agent, question(name))).finalOutput}`);
  const streamed = await run(agent, question(`${name} streamed`), { stream: true });
  await streamed.completed;
  console.log(`${name} streamed: ${streamed.finalOutput}`);
  if (process.argv[2] === undefined) {
    const form = z.object({ kind: z.string(), legs: z.number() });
    const namer = new Agent({ name: "namer", model, outputType: form });
    console.log(`${name} object: ${JSON.stringify((await run(namer, "Name an animal.")).finalOutput)}`);
  }
}
