// $settings
import { generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";
import { readFileSync } from "node:fs";
import { z } from "zod";

const tools = {
  get_weather: tool({
    description: "Get the weather forecast for a city",
    inputSchema: jsonSchema({
      type: "object",
      properties: {
        city: { type: "string", description: "name of the city" },
        day: { type: "string", enum: ["today", "tomorrow"] },
      },
      required: ["city"],
    }),
    execute: async () => ({ forecast: "light rain", high: 17 }),
  }),
};
const picture = {
  get_weather: tool({
    ...tools.get_weather,
    toModelOutput: () => ({
      type: "content",
      value: [
        { type: "text", text: "light rain, see the map" },
        { type: "image-data", data: readFileSync("dot.png").toString("base64"), mediaType: "image/png" },
      ],
    }),
  }),
};
const schema = z.object({ kind: z.string(), legs: z.number() });
const stopWhen = stepCountIs(5);

for (const [name, model] of Object.entries({ chat, responses, messages })) {
  const ask = (how, more) => ({
    model, tools, stopWhen, temperature: 0, maxRetries: 0,
    prompt: `What will the weather be like in Lisbon tomorrow?${process.argv[2] ?? ` (${how})`}`,
    ...more,
  });
  let answer = await generateText(ask("at once"));
  console.log(`${name}: ${answer.text}`);
  const streamed = streamText(ask("streamed"));
  console.log(`${name} streamed: ${await streamed.text}`);
  if (process.argv[2] !== undefined) continue; // ling-nano is asked for the weather alone
  answer = await generateText(ask("picture", { tools: picture }));
  console.log(`${name} picture: ${answer.text}`);

  // What the SDK keeps of an answer is sent back as the history of the next question.
  const history = [
    { role: "user", content: "Hello" },
    ...(await generateText({ model, prompt: "Hello", maxRetries: 0 })).response.messages,
    { role: "user", content: "And now?" },
  ];
  await generateText({ model, messages: history, maxRetries: 0 });

  const object = { model, schema, prompt: "Name an animal.", maxRetries: 0 };
  console.log(`${name} object: ${JSON.stringify((await generateObject(object)).object)}`);
  const objects = streamObject(object);
  for await (const part of objects.partialObjectStream) void part;
  console.log(`${name} object streamed: ${JSON.stringify(await objects.object)}`);
}
