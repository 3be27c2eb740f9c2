"""LangChain's own integration tests of chat models, with ling-nano behind `ling serve`."""

from __future__ import annotations

import pytest

from clients_support import client_package

langchain_openai = client_package("langchain_openai")
suite = client_package("langchain_tests.integration_tests")

# One loop for all: ChatOpenAI shares its connections among instances.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:.*is marked with:pytest.PytestWarning"),
]


class TestLingNano(suite.ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _served(self, ling_nano_url, request):
        self._url = ling_nano_url
        if request.node.originalname == "test_tool_calling_with_no_arguments":
            reason = "a model of 9 million parameters may well call twice"
            request.node.add_marker(pytest.mark.xfail(reason=reason))
        if request.node.originalname == "test_unicode_tool_call_integration":
            reason = "a model of 9 million parameters may take the words beside a name for it"
            request.node.add_marker(pytest.mark.xfail(reason=reason))

    @pytest.fixture
    def model(self, _served):
        return self.chat_model_class(**self.chat_model_params)

    @property
    def chat_model_class(self):
        return langchain_openai.ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "ling-nano",
            "base_url": self._url,
            "api_key": "unused",
            "temperature": 0,
            "max_tokens": 64,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def has_tool_choice(self):
        return True

    @property
    def has_structured_output(self):
        return False  # ling-nano does not see the schema and fills strings up to the limit

    @property
    def supports_json_mode(self):
        return False  # the same: valid as far as it goes, but cut off

    @property
    def supports_image_inputs(self):
        return False

    @property
    def supports_image_urls(self):
        return False

    @property
    def supports_pdf_inputs(self):
        return False

    @property
    def supports_audio_inputs(self):
        return False

    @property
    def supports_anthropic_inputs(self):
        return False
