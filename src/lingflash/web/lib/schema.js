// What can be said of tools and schemas before the server sees them. The server has the last word.

const TYPES = ["object", "array", "string", "number", "integer", "boolean", "null"];
// docs/server.md, "Structured output": the server cannot enforce these.
const NOT_ENFORCED = [
  "not", "if", "then", "else", "contains", "propertyNames", "dependentRequired",
  "dependentSchemas", "unevaluatedProperties", "unevaluatedItems",
];
const MAX_DEPTH = 64;
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Parse JSON; `problem` says where it is broken, by line and column. */
export function readJson(text) {
  try {
    return { value: JSON.parse(text), problem: "" };
  } catch (error) {
    const at = /position (\d+)/.exec(error.message);
    if (!at) return { problem: `This is no JSON: ${error.message}` };
    const before = text.slice(0, Number(at[1])).split("\n");
    const what = error.message.replace(/ in JSON at position.*/, "");
    return { problem: `Line ${before.length}, column ${before.at(-1).length + 1}: ${what}.` };
  }
}

/** What is wrong with a JSON schema, as sentences that begin with the place. */
export function schemaProblems(schema, path, mustEnforce, depth = 0) {
  if (typeof schema === "boolean") return [];
  if (!isObject(schema)) return [`${path} must be a schema: an object.`];
  if (depth > MAX_DEPTH) return [`${path} is nested more than ${MAX_DEPTH} levels deep.`];
  const problems = [];
  for (const type of [schema.type ?? []].flat()) {
    if (!TYPES.includes(type)) {
      problems.push(`${path}.type is ${JSON.stringify(type)}; allowed: ${TYPES.join(", ")}.`);
    }
  }
  if (schema.enum !== undefined && !(Array.isArray(schema.enum) && schema.enum.length)) {
    problems.push(`${path}.enum must be a list with at least one value.`);
  }
  const inner = (value, place) => problems.push(...schemaProblems(value, place, mustEnforce, depth + 1));
  if (schema.properties !== undefined) {
    if (isObject(schema.properties)) {
      for (const [name, value] of Object.entries(schema.properties)) {
        inner(value, `${path}.properties.${name}`);
      }
    } else {
      problems.push(`${path}.properties must be an object: names and their schemas.`);
    }
  }
  problems.push(...requiredProblems(schema, path));
  if (schema.items !== undefined) inner(schema.items, `${path}.items`);
  for (const key of ["anyOf", "oneOf", "allOf"]) {
    if (schema[key] === undefined) continue;
    if (Array.isArray(schema[key]) && schema[key].length) {
      schema[key].forEach((value, i) => inner(value, `${path}.${key}[${i}]`));
    } else {
      problems.push(`${path}.${key} must be a list of schemas.`);
    }
  }
  if (mustEnforce) {
    for (const key of NOT_ENFORCED.filter((each) => each in schema)) {
      problems.push(`${path}.${key} cannot be enforced; leave it out.`);
    }
    if (schema.uniqueItems === true) {
      problems.push(`${path}.uniqueItems cannot be enforced; leave it out.`);
    }
  }
  return problems;
}

function requiredProblems(schema, path) {
  const required = schema.required;
  if (required === undefined) return [];
  if (!Array.isArray(required) || required.some((name) => typeof name !== "string")) {
    return [`${path}.required must be a list of names.`];
  }
  if (!isObject(schema.properties)) return [];
  return required
    .filter((name) => !(name in schema.properties))
    .map((name) => `${path}.required names ${JSON.stringify(name)}, which is no property.`);
}

/** Read the text of the tools' editor: {value, problems}; no text is no tools. */
export function readTools(text) {
  if (!text.trim()) return { value: [], problems: [] };
  const { value, problem } = readJson(text);
  if (problem) return { value: [], problems: [problem] };
  if (!Array.isArray(value)) return { value: [], problems: ["Write a list of tools: [...]."] };
  const problems = [];
  const names = new Set();
  value.forEach((tool, i) => problems.push(...toolProblems(tool, `tools[${i}]`, names)));
  return { value, problems };
}

function toolProblems(tool, path, names) {
  if (!isObject(tool)) return [`${path} must be an object.`];
  if (tool.type === "custom") return isObject(tool.custom) ? [] : [`${path}.custom is missing.`];
  if (tool.type !== "function") {
    return [`${path}.type is ${JSON.stringify(tool.type)}; allowed: "function", "custom".`];
  }
  if (!isObject(tool.function)) return [`${path}.function is missing: an object with a name.`];
  const { name, parameters, strict } = tool.function;
  const problems = [];
  if (typeof name !== "string" || !name) {
    problems.push(`${path}.function.name is missing.`);
  } else if (names.has(name)) {
    problems.push(`${path}.function.name is ${JSON.stringify(name)}, as another tool's.`);
  }
  names.add(name);
  if (parameters !== undefined) {
    const place = `${path}.function.parameters`;
    if (isObject(parameters) && TYPES.includes(parameters.type) && parameters.type !== "object") {
      problems.push(`${place}.type must be "object".`);
    }
    problems.push(...schemaProblems(parameters, place, strict === true));
  }
  return problems;
}

/** Read the text of the schema's editor: {value, problems}. */
export function readSchema(text) {
  if (!text.trim()) return { value: null, problems: ["Write a JSON schema."] };
  const { value, problem } = readJson(text);
  if (problem) return { value: null, problems: [problem] };
  return { value, problems: schemaProblems(value, "schema", true) };
}
