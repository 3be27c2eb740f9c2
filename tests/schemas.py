"""Varied JSON Schemas, small enough to be answered in a few tokens, for constrained answers."""

from __future__ import annotations

from typing import Any

STRING = {"type": "string", "maxLength": 24}
INTEGER = {"type": "integer", "minimum": -999, "maximum": 99999}
NUMBER = {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.5}
BOOLEAN = {"type": "boolean"}
COLOR = {"enum": ["red", "green", "blue"]}
DATE = {"type": "string", "format": "date"}
TIME = {"type": "string", "format": "time"}
EMAIL = {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,8}[.](com|org)$"}
CODE = {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}
ISO = {"type": "string", "pattern": "^[A-Z]{2}$"}


def record(required: bool = True, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(properties)
    return schema


def many(items: dict[str, Any], most: int = 3, least: int = 0) -> dict[str, Any]:
    """A short list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


POINT = record(x=INTEGER, y=INTEGER)
PERSON = record(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 130})
NODE = {
    **record(v=INTEGER),
    "properties": {"v": INTEGER, "next": {"$ref": "#/$defs/node"}},
}

SCHEMAS: list[dict[str, Any]] = [
    record(city=STRING),
    record(city=STRING, unit={"enum": ["celsius", "fahrenheit"]}),
    record(city=STRING, days={"type": "integer", "minimum": 1, "maximum": 14}),
    PERSON,
    record(person=PERSON, active=BOOLEAN),
    record(people=many(PERSON, 2, 1)),
    POINT,
    record(points=many(POINT, 3)),
    record(a=record(b=record(c=record(d=BOOLEAN)))),
    record(color=COLOR, size={"enum": ["S", "M", "L"]}),
    record(colors=many(COLOR)),
    record(flags=many(BOOLEAN, 5, 2)),
    record(amount=NUMBER, currency=ISO),
    record(price={"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25}),
    record(date=DATE),
    record(start=DATE, end=DATE, all_day=BOOLEAN),
    record(time=TIME, label=STRING),
    record(to=EMAIL, subject=STRING),
    record(code=CODE),
    record(codes=many(CODE, 2, 1), count=INTEGER),
    record(False, note=STRING),
    record(False, a=INTEGER, b=BOOLEAN, c=COLOR),
    record(value={"anyOf": [INTEGER, {"type": "null"}]}),
    record(value={"anyOf": [COLOR, POINT, BOOLEAN]}),
    record(value={"type": ["boolean", "null"]}),
    record(status={"const": "ok"}),
    record(status={"const": "ok"}, code={"const": 200}, none={"const": None}),
    {"$ref": "#/$defs/p", "$defs": {"p": POINT}},
    record(at={"$ref": "#/$defs/p"}) | {"$defs": {"p": POINT}},
    record(list={"$ref": "#/$defs/node"}) | {"$defs": {"node": NODE}},
    {"type": "array", "items": BOOLEAN, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [BOOLEAN, COLOR], "items": False, "minItems": 2},
    {"type": "boolean"},
    INTEGER,
    COLOR,
    {"enum": ["ü", "日本語", 'quote " and \\ slash', 3, None, [1, 2], {"a": 1}]},
    DATE,
    CODE,
    {"type": "string", "minLength": 3, "maxLength": 8},
    {"type": "null"},
    record(**{"größe": INTEGER, "日本": BOOLEAN}),
    record(**{"with space": BOOLEAN, 'with "quote"': BOOLEAN, "a/b~c": BOOLEAN}),
    record(matrix=many(many({"type": "integer", "minimum": 0, "maximum": 9}, 3, 1), 2, 1)),
    record(rating={"type": "integer", "minimum": 1, "maximum": 5}, comment=STRING),
    record(low={"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}),
    record(query=STRING, limit=INTEGER, sort={"enum": ["asc", "desc"]}),
    record(kind={"const": "circle"}, radius=INTEGER),
    {
        "anyOf": [
            record(kind={"const": "circle"}, radius=INTEGER),
            record(kind={"const": "box"}, width=INTEGER, height=INTEGER),
        ]
    },
    record(a=STRING, b=STRING, c=STRING),
    {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "additionalProperties": False,
    },
    record(tags=many({"type": "string", "pattern": "^[a-z]{2,6}$"}, 3)),
    record(url={"type": "string", "pattern": "^https://[a-z]{1,10}[.]com/[a-z0-9]{0,8}$"}),
    record(ip={"type": "string", "format": "ipv4"}),
    record(uuid={"type": "string", "format": "uuid"}),
    record(title=STRING, done=BOOLEAN, due={"anyOf": [DATE, {"type": "null"}]}),
]
