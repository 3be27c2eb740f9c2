"""Coding agents and other commands: settings that live in files and variables."""

from __future__ import annotations

from lingflash.cli.connect_program import Program

_CODEX = """\
model = "$model"
model_provider = "lingflash"
model_context_window = $context

[model_providers.lingflash]
name = "lingflash"
base_url = "$url/v1"
wire_api = "responses"
env_key = "LINGFLASH_API_KEY"
"""

_CLAUDE_CODE = """\
{
  "env": {
    "ANTHROPIC_BASE_URL": "$url",
    "ANTHROPIC_AUTH_TOKEN": "$key",
    "ANTHROPIC_MODEL": "$model",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": "$model",
    "ANTHROPIC_DEFAULT_SONNET_MODEL": "$model",
    "ANTHROPIC_DEFAULT_OPUS_MODEL": "$model",
    "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "$context",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"
  }
}
"""

_OPENCODE = """\
{
  "model": "lingflash/$model",
  "small_model": "lingflash/$model",
  "provider": {
    "lingflash": {
      "npm": "@ai-sdk/openai-compatible",
      "name": "lingflash",
      "options": {"baseURL": "$url/v1", "apiKey": "$key"},
      "models": {
        "$model": {
          "name": "$model",
          "tool_call": true,
          "limit": {"context": $context, "output": $output}
        }
      }
    }
  }
}
"""

_QWEN_CODE = """\
{
  "modelProviders": {
    "openai": [
      {
        "id": "$model",
        "name": "$model",
        "baseUrl": "$url/v1",
        "envKey": "LINGFLASH_API_KEY",
        "generationConfig": {"contextWindowSize": $context}
      }
    ]
  },
  "env": {"LINGFLASH_API_KEY": "$key"},
  "security": {"auth": {"selectedType": "openai"}},
  "model": {"name": "$model"}
}
"""

_CLINE = """\
{
  "version": 1,
  "lastUsedProvider": "openai-compatible",
  "providers": {
    "openai-compatible": {
      "settings": {
        "provider": "openai-compatible",
        "apiKey": "$key",
        "model": "$model",
        "baseUrl": "$url/v1"
      },
      "updatedAt": "2026-01-01T00:00:00.000Z",
      "tokenSource": "manual"
    }
  }
}
"""

_LLM = """\
- model_id: "$model"
  model_name: "$model"
  api_base: "$url/v1"
  headers: {Authorization: "Bearer $key"}
  supports_tools: true
  supports_schema: true
"""

AGENTS = (
    Program(
        name="codex",
        title="Codex CLI",
        package="@openai/codex",
        version="0.171.0",
        registry="npm",
        api=("/v1/responses",),
        min_context=24_000,
        files={".codex/config.toml": _CODEX},
        environment={"LINGFLASH_API_KEY": "$key"},
        start="codex",
        notes="Its own prompt has about 16,400 tokens of ling-nano. With `model_context_window` it "
        "compacts before the context is full. Web search is not there; tools of MCP servers are.",
    ),
    Program(
        name="claude-code",
        title="Claude Code",
        package="@anthropic-ai/claude-code",
        version="2.1.197",
        registry="npm",
        api=("/v1/messages",),
        min_context=48_000,
        files={".claude/settings.json": _CLAUDE_CODE},
        start="claude",
        notes="The URL has no `/v1`. The three `DEFAULT` names are those of its sub-agents, which "
        "ask for a model of their own otherwise. Its own prompt has about 35,000 tokens of "
        "ling-nano (21,600 in 2.1.332, which was run too). Without "
        "`CLAUDE_CODE_MAX_CONTEXT_TOKENS` it takes the context for 200,000 tokens or a million "
        "and compacts only after the server's error.",
    ),
    Program(
        name="opencode",
        title="opencode",
        package="opencode-ai",
        version="1.18.33",
        registry="npm",
        api=("/v1/chat/completions",),
        min_context=24_000,
        files={".config/opencode/opencode.json": _OPENCODE},
        start="opencode",
        notes="`limit` must be there: without it opencode never compacts. Its own prompt has about "
        "13,500 tokens of ling-nano. Where there is no internet, `OPENCODE_DISABLE_MODELS_FETCH=1` "
        "saves it seven seconds of waiting for a list of models.",
    ),
    Program(
        name="qwen-code",
        title="Qwen Code",
        package="@qwen-code/qwen-code",
        version="0.15.10",
        registry="npm",
        api=("/v1/chat/completions",),
        min_context=48_000,
        files={".qwen/settings.json": _QWEN_CODE},
        start="qwen",
        notes="The newest version for Node 20. Its own prompt has about 35,000 tokens of "
        "ling-nano.",
    ),
    Program(
        name="cline",
        title="Cline CLI",
        package="cline",
        version="3.0.65",
        registry="npm",
        api=("/v1/chat/completions",),
        min_context=12_000,
        files={".cline/data/settings/providers.json": _CLINE},
        start="cline",
        notes="`cline auth -p openai -k KEY -m MODEL -b URL/v1` writes the same file. Its own "
        "prompt has 6,000 to 7,300 tokens of ling-nano.",
    ),
    Program(
        name="llm",
        title="llm",
        package="llm",
        version="0.36",
        registry="pypi",
        api=("/v1/chat/completions",),
        files={".config/io.datasette.llm/extra-openai-models.yaml": _LLM},
        start="llm -m $model 'Hello'",
        notes="`responses: true` or `completion: true` beside `supports_tools` make it speak the "
        "other two APIs.",
    ),
)
