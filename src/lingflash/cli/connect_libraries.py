"""Libraries and tools that measure: settings that are code or a command."""

from __future__ import annotations

from lingflash.cli.connect_program import Program

_CHAT, _RESPONSES, _MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"

_AI_SDK = """\
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const options = { baseURL: "$url/v1", apiKey: "$key" };
const chat = createOpenAICompatible({
  ...options, name: "lingflash", includeUsage: true, supportsStructuredOutputs: true,
})("$model");
const responses = createOpenAI(options).responses("$model");
const messages = createAnthropic(options)("$model");
"""

_OPENAI_NODE = """\
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "$url/v1", apiKey: "$key" });
const model = "$model";
"""

_LANGCHAIN = """\
import { ChatOpenAI } from "@langchain/openai";

const options = { model: "$model", apiKey: "$key", configuration: { baseURL: "$url/v1" } };
const chat = new ChatOpenAI(options);
const responses = new ChatOpenAI({ ...options, useResponsesApi: true });
"""

_AGENTS_JS = """\
import {
  OpenAIChatCompletionsModel, OpenAIResponsesModel, setTracingDisabled,
} from "@openai/agents";
import OpenAI from "openai";

setTracingDisabled(true);
const client = new OpenAI({ baseURL: "$url/v1", apiKey: "$key" });
const chat = new OpenAIChatCompletionsModel(client, "$model");
const responses = new OpenAIResponsesModel(client, "$model");
"""

_OPENAI_PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="$url/v1", api_key="$key")
model = "$model"
"""

_INSTRUCTOR = """\
import anthropic
import instructor
import openai

model = "$model"
options = {"api_key": "$key"}
openai_client = openai.OpenAI(base_url="$url/v1", **options)
chat = instructor.from_openai(openai_client, mode=instructor.Mode.TOOLS)
responses = instructor.from_openai(openai_client, mode=instructor.Mode.RESPONSES_TOOLS)
messages = instructor.from_anthropic(
    anthropic.Anthropic(base_url="$url", **options), mode=instructor.Mode.ANTHROPIC_TOOLS
)
"""

_SMOLAGENTS = """\
from smolagents import OpenAIServerModel

model = OpenAIServerModel(model_id="$model", api_base="$url/v1", api_key="$key")
"""

_HAYSTACK = """\
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.utils import Secret

generator = OpenAIChatGenerator(
    model="$model", api_base_url="$url/v1", api_key=Secret.from_token("$key")
)
"""

_AUTOGEN = """\
from autogen_ext.models.openai import OpenAIChatCompletionClient

client = OpenAIChatCompletionClient(
    model="$model",
    base_url="$url/v1",
    api_key="$key",
    model_info={
        "vision": False,
        "function_calling": True,
        "json_output": True,
        "structured_output": True,
        "family": "unknown",
    },
)
"""


def _npm(
    name: str, title: str, package: str, version: str, code: str, *api: str, notes: str = ""
) -> Program:
    return Program(
        name=name,
        title=title,
        package=package,
        version=version,
        registry="npm",
        api=api,
        code=code,
        language="js",
        notes=notes,
    )


def _pypi(
    name: str, title: str, package: str, version: str, code: str, *api: str, notes: str = ""
) -> Program:
    return Program(
        name=name,
        title=title,
        package=package,
        version=version,
        registry="pypi",
        api=api,
        code=code,
        language="python",
        notes=notes,
    )


LIBRARIES = (
    _npm(
        *("ai-sdk", "AI SDK", "ai", "6.0.326", _AI_SDK, _CHAT, _RESPONSES, _MESSAGES),
        notes="With `@ai-sdk/openai-compatible` 2.0.92, `@ai-sdk/openai` 3.0.141 and "
        "`@ai-sdk/anthropic` 3.0.140; this one wants the `/v1` that other clients of that API do "
        "not. Without `supportsStructuredOutputs` generateObject asks for any JSON object.",
    ),
    _npm("openai-node", "openai for Node", "openai", "6.49.0", _OPENAI_NODE, _CHAT, _RESPONSES),
    _npm(
        *("langchain-js", "LangChain JS", "@langchain/openai", "1.5.8", _LANGCHAIN),
        *(_CHAT, _RESPONSES),
        notes="`streaming: true` looks for a tokenizer on the internet; `.stream()` does not.",
    ),
    _npm(
        *("openai-agents-js", "openai-agents JS", "@openai/agents", "0.20.0", _AGENTS_JS),
        *(_CHAT, _RESPONSES),
        notes="Traces would be sent to OpenAI, so they are switched off.",
    ),
    _pypi(
        "openai-python", "openai for Python", "openai", "3.57.0", _OPENAI_PYTHON, _CHAT, _RESPONSES
    ),
    _pypi(
        *("instructor", "instructor", "instructor", "1.17.0", _INSTRUCTOR),
        *(_CHAT, _RESPONSES, _MESSAGES),
        notes="The Anthropic client takes the URL without `/v1`.",
    ),
    _pypi("smolagents", "smolagents", "smolagents", "1.26.0", _SMOLAGENTS, _CHAT),
    _pypi("haystack", "Haystack", "haystack-ai", "3.4.1", _HAYSTACK, _CHAT),
    _pypi(
        *("autogen", "AutoGen", "autogen-ext", "0.7.5", _AUTOGEN, _CHAT),
        notes="A model it does not know needs `model_info`.",
    ),
    Program(
        name="inspect-ai",
        title="Inspect",
        package="inspect-ai",
        version="0.3.285",
        registry="pypi",
        api=(_CHAT,),
        environment={"LING_BASE_URL": "$url/v1", "LING_API_KEY": "$key"},
        start="inspect eval task.py --model openai-api/ling/$model",
    ),
    Program(
        name="lm-eval",
        title="lm-evaluation-harness",
        package="lm-eval",
        version="0.4.13",
        registry="pypi",
        api=("/v1/completions",),
        calls_tools=False,
        environment={"OPENAI_API_KEY": "$key"},
        start="lm_eval run --model local-completions --model_args "
        "base_url=$url/v1/completions,model=$model,tokenizer=CHECKPOINT_FOLDER --tasks ...",
        notes="`tokenizer` is the folder of the checkpoint, and needs `transformers`.",
    ),
    Program(
        name="guidellm",
        title="GuideLLM",
        package="guidellm",
        version="0.8.1",
        registry="pypi",
        api=(_CHAT, "/v1/completions", _RESPONSES),
        calls_tools=False,
        start="guidellm run --backend kind=openai_http,target=$url,model=$model,api_key=$key,"
        "request_format=/v1/chat/completions,max_tokens=16 ...",
        notes="`request_format` may be `/v1/completions` or `/v1/responses` too.",
    ),
)
