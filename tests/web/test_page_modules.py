"""Parts of the page that only compute, run by node: numbers, events, metrics, schemas."""

from __future__ import annotations

import json
import subprocess
from importlib.resources import files

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

pytestmark = pytest.mark.slow

LIB = files("lingflash") / "web" / "lib"


def run(module, expression, *given):
    """What an expression gives that uses a module as `m` and what it is given as `a`, `b`, ..."""
    names = "abc"[: len(given)]
    script = (
        f"import * as m from {json.dumps((LIB / module).as_uri())};\n"
        + "".join(f"const {n} = {json.dumps(v)};\n" for n, v in zip(names, given, strict=True))
        + f"console.log(JSON.stringify(await ({expression})));"
    )
    ran = subprocess.run(
        ["node", "--input-type=module", "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_numbers_then_zeros_that_count_are_kept():
    seconds = [0, 0.0001234, 0.1, 0.2, 0.0305, 1, 20, 123.4]
    assert run("html.js", "a.map(m.duration)", seconds) == [
        "0 ms",
        "0.123 ms",
        "100 ms",
        "200 ms",
        "30.5 ms",
        "1 s",
        "20 s",
        "123 s",
    ]
    assert run("html.js", "a.map(m.bytes)", [0, 1023, 1024, 2**20 * 150, 2**30]) == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "150 MiB",
        "1.0 GiB",
    ]


def test_events_when_the_stream_is_cut_anywhere_then_the_same():
    stream = (
        ': prompt_progress {"total":3}\n\ndata: {"a": "ä\\n"}\n\ndata: one\r\ndata: two\r\n\r\n'
    )
    stream += "event: x\ndata: 3\n\n: ping\n\ndata: [DONE]\n\n"
    read = (
        "(async () => { const all = []; const bytes = new TextEncoder().encode(a);"
        " for (let cut = 0; cut <= bytes.length; cut += 1) {"
        "  const parts = [bytes.slice(0, cut), bytes.slice(cut)];"
        "  const body = new ReadableStream({ start(c) { parts.forEach((p) => c.enqueue(p));"
        "   c.close(); } });"
        "  const found = []; for await (const event of m.events(body)) found.push(event);"
        "  all.push(JSON.stringify(found)); } return [...new Set(all)]; })()"
    )
    (found,) = run("sse.js", read, stream)
    assert json.loads(found) == [
        {"comment": 'prompt_progress {"total":3}'},
        {"data": '{"a": "ä\\n"}'},
        {"data": "one\ntwo"},
        {"data": "3"},
        {"comment": "ping"},
        {"data": "[DONE]"},
    ]


def test_metrics_then_read_as_they_were_written():
    registry = CollectorRegistry()
    odd = 'a"b\\c\nd, e="f"} 3'
    Counter("lingflash_x", "What", ["code"], registry=registry).labels(odd).inc(3)
    Counter("lingflash_y", "What", registry=registry).inc(1e17)
    text = generate_latest(registry).decode()
    assert run("metrics.js", "m.byLabel(m.readMetrics(a), 'x_total', 'code')", text) == {odd: 3}
    assert run("metrics.js", "m.valueOf(m.readMetrics(a), 'y_total')", text) == 1e17


def test_quantiles_then_those_of_what_was_observed_within_a_bucket():
    registry = CollectorRegistry()
    bounds = tuple(i / 100 for i in range(1, 101))
    seen = Histogram("lingflash_t_seconds", "What", registry=registry, buckets=bounds)
    for _ in range(1000):
        seen.observe(0.9)
    before = generate_latest(registry).decode()
    for i in range(1000):
        seen.observe(i / 2000)
    after = generate_latest(registry).decode()
    buckets = "m.grownBuckets(m.readMetrics(b), m.readMetrics(a), 't_seconds')"
    found = run("metrics.js", f"[0.5, 0.95, 1].map(q => m.quantile({buckets}, q))", before, after)
    assert found == pytest.approx([0.25, 0.475, 0.5], abs=0.01)
    assert run("metrics.js", f"m.quantile({buckets}, 0.5)", after, after) is None
    # A server that was started again counts from nothing.
    restarted = f"m.quantile({buckets}, 0.5)"
    assert run("metrics.js", restarted, after, before) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, []),
        ({"type": ["string", "null"]}, []),
        (True, []),
        ({"type": "text"}, ['schema.type is "text"']),
        ({"properties": []}, ["schema.properties must be an object"]),
        ({"properties": {"a": 3}}, ["schema.properties.a must be a schema"]),
        ({"items": {"enum": []}}, ["schema.items.enum must be a list"]),
        ({"anyOf": {}}, ["schema.anyOf must be a list of schemas"]),
        ({"required": ["b"], "properties": {"a": {}}}, ['schema.required names "b"']),
        ({"uniqueItems": True, "not": {}}, ["schema.not cannot", "schema.uniqueItems cannot"]),
        ({"uniqueItems": False}, []),
    ],
    ids=lambda value: json.dumps(value)[:40] if not isinstance(value, list) else "",
)
def test_schema_then_its_problems_are_named(schema, said):
    found = run("schema.js", "m.readSchema(JSON.stringify(a)).problems", schema)
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_schema_when_nested_without_end_then_refused_and_not_followed():
    schema = {}
    for _ in range(200):
        schema = {"items": schema}
    (found,) = run("schema.js", "m.readSchema(JSON.stringify(a)).problems", schema)
    assert "more than 64 levels" in found
