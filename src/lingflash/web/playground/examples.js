// What a first visit offers. Each of them works with ling-nano: a test sends them.

const tool = (name, description, properties, required = Object.keys(properties)) => ({
  type: "function",
  function: { name, description, parameters: { type: "object", properties, required } },
});

const WEATHER = tool("get_weather", "Get the current weather in a city.", {
  city: { type: "string", description: "Name of the city" },
});
const ALARM = tool("set_alarm", "Set an alarm.", {
  time: { type: "string", description: "Time of day" },
  label: { type: "string", description: "What it is for" },
});
const TABLE = tool("book_table", "Book a table at a restaurant.", {
  restaurant: { type: "string" },
  people: { type: "integer" },
  time: { type: "string" },
});

// As models know it.
const PYTHON = tool("python", "Run Python code and return what it prints.", {
  code: { type: "string" },
});

const withTools = (...tools) => ({ tools: JSON.stringify(tools, null, 2), temperature: "0" });

/** What the examples want of a server is one of its features. */
export const EXAMPLES = [
  {
    title: "Call a tool",
    about: "The model asks for the weather. You answer by hand, and it tells you.",
    message: "What is the weather in Lisbon?",
    settings: withTools(WEATHER),
  },
  {
    title: "Two calls at once",
    about: "One question, two calls of the same tool.",
    message: "What is the weather in Lisbon and in Oslo?",
    settings: withTools(WEATHER),
  },
  {
    title: "Choose among tools",
    about: "Three tools, one that fits, and a number among its arguments.",
    message: "Reserve a table for six people at Bella Vista at 19:30.",
    settings: withTools(WEATHER, ALARM, TABLE),
  },
  {
    title: "No tool fits",
    about: "The model says so instead of calling one.",
    message: "Order me a pizza.",
    settings: withTools(WEATHER, ALARM),
  },
  {
    title: "Answer in a schema",
    about: "A grammar holds the answer to a JSON schema, token by token.",
    message: "What is the weather in Lisbon?",
    settings: {
      temperature: "0",
      format: "json_schema",
      schema: JSON.stringify(
        {
          type: "object",
          properties: { city: { type: "string", enum: ["Lisbon", "Oslo", "Paris"] } },
          required: ["city"],
          additionalProperties: false,
        },
        null,
        2,
      ),
    },
  },
  {
    title: "Run code",
    about: "The model writes Python, you have it run in the sandbox, and it reads what came of it.",
    message: "What is 17 * 23?",
    settings: withTools(PYTHON),
    wants: "code",
  },
];
