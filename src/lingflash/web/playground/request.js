// Settings, and the body of a request that they make.
import { readSchema, readTools } from "../lib/schema.js";
import { server } from "../lib/server.js";

export const FRESH = Object.freeze({
  model: "",
  system: "",
  thinking: false,
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  presence_penalty: "",
  frequency_penalty: "",
  repetition_penalty: "",
  max_tokens: "",
  seed: "",
  stop: "",
  tools: "",
  tool_choice: "auto",
  parallel_tool_calls: true,
  format: "text",
  schema: "",
  regex: "",
  choices: "",
});

export const NUMBERS = {
  temperature: { label: "Temperature", low: 0, high: 2 },
  top_p: { label: "Top p", low: 0, high: 1 },
  top_k: { label: "Top k", low: -1, isWhole: true },
  min_p: { label: "Min p", low: 0, high: 1 },
  presence_penalty: { label: "Presence penalty", low: -2, high: 2 },
  frequency_penalty: { label: "Frequency penalty", low: -2, high: 2 },
  repetition_penalty: { label: "Repetition penalty", low: 0, high: 2 },
  max_tokens: { label: "Longest answer", low: 1, isWhole: true },
  seed: { label: "Seed", isWhole: true },
};

export const FORMATS = {
  text: "Text",
  json_object: "A JSON object",
  json_schema: "JSON that follows a schema",
  regex: "Text that matches a regular expression",
  choice: "One of several texts",
};

const lines = (text) => text.split("\n").filter((line) => line !== "");

function numberProblem(name, text) {
  const { label, low = -Infinity, high = Infinity, isWhole } = NUMBERS[name];
  const value = Number(text);
  if (!Number.isFinite(value) || value < low || value > high) {
    const bounds = high === Infinity ? (low === -Infinity ? "" : `, ${low} or more`) : `, ${low} to ${high}`;
    return `${label}: a number${bounds}.`;
  }
  return isWhole && !Number.isInteger(value) ? `${label}: a whole number.` : "";
}

/** What is wrong with settings: field to sentences. */
export function problemsOf(settings) {
  const found = {};
  for (const name of Object.keys(NUMBERS)) {
    const problem = settings[name].trim() ? numberProblem(name, settings[name]) : "";
    if (problem) found[name] = [problem];
  }
  const tools = readTools(settings.tools).problems;
  if (tools.length) found.tools = tools;
  if (settings.format === "json_schema") {
    const schema = readSchema(settings.schema).problems;
    if (schema.length) found.schema = schema;
  }
  if (settings.format === "regex" && !settings.regex) found.regex = ["Write an expression."];
  if (settings.format === "choice" && !lines(settings.choices).length) {
    found.choices = ["Write one text a line."];
  }
  return found;
}

/** Which field of the settings an error of the server is about; "" if none. */
export function fieldOf(param) {
  if (param.startsWith("tools") || param === "tool_choice") return "tools";
  if (param.startsWith("response_format")) return "schema";
  if (param.startsWith("structured_outputs")) return param.includes("regex") ? "regex" : "choices";
  return param in NUMBERS ? param : "";
}

/** The body of a chat request: what somebody would write who uses the API, and no more. */
export function bodyOf(settings, messages) {
  const body = {};
  // A gateway has no model that is meant if none is named.
  const model = settings.model || (server.has("accounts") ? server.models[0]?.id : "");
  if (model) body.model = model;
  body.messages = settings.system.trim()
    ? [{ role: "system", content: settings.system }, ...messages]
    : messages;
  const tools = readTools(settings.tools).value;
  if (tools.length) {
    body.tools = tools;
    if (settings.tool_choice !== "auto") body.tool_choice = settings.tool_choice;
    if (!settings.parallel_tool_calls) body.parallel_tool_calls = false;
  }
  for (const name of Object.keys(NUMBERS)) {
    if (settings[name].trim()) body[name] = Number(settings[name]);
  }
  if (lines(settings.stop).length) body.stop = lines(settings.stop);
  if (settings.thinking) body.reasoning_effort = "high";
  return { ...body, ...formatOf(settings) };
}

function formatOf(settings) {
  switch (settings.format) {
    case "json_object":
      return { response_format: { type: "json_object" } };
    case "json_schema": {
      const schema = readSchema(settings.schema).value;
      return { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } };
    }
    case "regex":
      return { structured_outputs: { regex: settings.regex } };
    case "choice":
      return { structured_outputs: { choice: lines(settings.choices) } };
    default:
      return {};
  }
}

/**
 * The same, with what the page shows besides the answer: as far as it is known to be understood
 * wherever the request goes, since a vendor refuses what it does not know.
 */
export function askedWithReports(body) {
  const honoured = server.models.find(({ id }) => id === body.model)?.honoured_by_all ?? [];
  const options = { include_usage: true };
  if (server.has("progress")) options.include_progress = true;
  const asked = { ...body, stream: true, stream_options: options };
  if (server.has("reports") || honoured.includes("return_cache_report")) {
    asked.return_cache_report = true;
  }
  if (server.has("tokens")) asked.return_token_ids = true;
  return asked;
}
