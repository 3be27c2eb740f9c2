"""Calls that BFCL's answer keys allow, as a model would write them; and damaged ones."""

from __future__ import annotations

import json
import random
import re


def gold_calls(answer, functions, category):
    """Of each argument the first value allowed; Java and JavaScript values as source text."""
    by_name = {f["name"]: f["parameters"] for f in functions}
    calls = []
    for call in answer:
        for name, arguments in call.items():
            name = re.sub(r"\.", "_", name)
            parameters = by_name.get(name, {"properties": {}, "required": []})
            given = {}
            for key, allowed in arguments.items():
                first = (
                    [v for v in allowed if v != ""] if key in parameters["required"] else allowed
                )
                if first and first[0] != "":
                    value = plain(first[0])
                    schema = parameters["properties"].get(key, {})
                    if category in ("simple_java", "simple_javascript"):
                        value = source(value, schema, is_java=category == "simple_java")
                    given[key] = value
            calls.append({name: json.dumps(given, ensure_ascii=False)})
    return calls


def plain(value):
    """Nested alternatives resolved: in an object each value is a list of those allowed."""
    if isinstance(value, dict):
        items = ((k, v) for k, v in value.items() if not isinstance(v, list) or v[:1] != [""])
        return {k: plain(v[0]) if isinstance(v, list) and v else v for k, v in items}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def source(value, schema, *, is_java):
    """A value in the text of its language, as BFCL reads it."""
    kind, inner = schema.get("type"), schema.get("items", {}).get("type")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        quoted = inner != "String" or kind == "ArrayList" or not is_java
        parts = ", ".join(literal(v, inner, quoted=quoted, is_java=is_java) for v in value)
        if not is_java:
            return f"[{parts}]"
        if kind == "ArrayList":
            return f"new ArrayList<>(Arrays.asList({parts}))"
        return f"new {inner}[]{{{parts}}}"
    if isinstance(value, dict):
        pairs = {k: literal(v, None, quoted=True, is_java=is_java) for k, v in value.items()}
        if is_java:
            puts = " ".join(f'put("{k}", {v});' for k, v in pairs.items())
            return "new HashMap<>() {{ " + puts + " }}"
        return "{" + ", ".join(f"{k}: {v}" for k, v in pairs.items()) + "}"
    return literal(value, kind, quoted=False, is_java=is_java)


def literal(value, kind, *, quoted, is_java):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if quoted else value
    if isinstance(value, list):
        inner = ", ".join(literal(v, None, quoted=True, is_java=is_java) for v in value)
        return f"[{inner}]"
    if is_java and kind == "long":
        return f"{value}L"
    if is_java and kind == "float":
        return f"{value}f"
    return str(value)


def damage(calls, seed):
    """One thing of right calls made wrong, in one of six ways; some ways do not always hurt."""
    draw = random.Random(seed)
    calls = json.loads(json.dumps(calls))
    place = draw.randrange(len(calls))
    [(name, arguments)] = calls[place].items()
    values = json.loads(arguments)
    way = draw.choice(["value", "drop", "extra", "name", "cut", "more", "gone"])
    if way == "value" and values:
        key = draw.choice(sorted(values))
        values[key] = draw.choice([None, "something else", -7, [], {}, True])
    elif way == "drop" and values:
        del values[draw.choice(sorted(values))]
    elif way == "extra":
        values["not_asked_for"] = 1
    elif way == "name":
        name += "_x"
    elif way == "more":
        calls.append({name: arguments})
    elif way == "gone":
        del calls[place]
        return calls
    text = json.dumps(values, ensure_ascii=False)
    calls[place] = {name: text[:-1] if way == "cut" else text}
    return calls
