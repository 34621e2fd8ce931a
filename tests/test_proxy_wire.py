"""Paths tell formats; bodies tell model, streaming and what the model must be able to do."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire import Operation, Said, UnreadableRequest, WireFormat, operation_of, parse, said

CHAT, RESPONSES, EMBEDDINGS, MESSAGES, GOOGLE = WireFormat


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", Operation(CHAT)),
        ("/v1/chat/completions/", Operation(CHAT)),
        ("/v1/responses", Operation(RESPONSES)),
        ("/v1/embeddings", Operation(EMBEDDINGS)),
        ("/v1/messages", Operation(MESSAGES)),
        ("/v1/messages/count_tokens", Operation(MESSAGES, counts_tokens=True)),
        ("/v1beta/models/gemini-2.5-pro:generateContent", Operation(GOOGLE, False, "gemini-2.5-pro", False)),
        (
            "/v1beta/models/zai/glm-5.1:streamGenerateContent",
            Operation(GOOGLE, False, "zai/glm-5.1", True),
        ),
        ("/v1/models/gemini-2.5-pro:countTokens", Operation(GOOGLE, True, "gemini-2.5-pro", False)),
        ("/v1/traces", None),
        ("/v1/models", None),
        ("/chat/completions", None),
        ("/v1beta/models/../../etc:generateContent", None),
    ],
)
def test_a_path_tells_the_format(path: str, operation: Operation | None) -> None:
    assert operation_of(path) == operation


TOOL_RESULT_WITH_IMAGE = {
    "role": "user",
    "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]}],
}


@pytest.mark.parametrize(
    ("path", "request_body", "expected"),
    [
        ("/v1/chat/completions", {"model": "m"}, (Said("m", False), False)),
        (
            "/v1/chat/completions",
            {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5,
             "max_completion_tokens": 9, "n": 2, "tools": [{}],
             "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            (Said("m", True, 9, True, 2), True),
        ),
        ("/v1/messages", {"model": "m", "max_tokens": 7, "messages": [TOOL_RESULT_WITH_IMAGE]},
         (Said("m", False, 7), True)),
        ("/v1/responses", {"model": "m", "input": "hello"}, (Said("m", False), False)),
        ("/v1/responses", {"model": "m", "max_output_tokens": 3,
         "input": [{"content": [{"type": "input_image"}]}]}, (Said("m", False, 3), True)),
        ("/v1beta/models/g:streamGenerateContent",
         {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png"}}]}], "tools": [{}],
          "generationConfig": {"maxOutputTokens": 4, "responseMimeType": "application/json"}},
         (Said("g", True, 4, True), True)),
    ],
)  # fmt: skip
def test_what_a_request_says(path: str, request_body: dict[str, Any], expected: tuple[Said, bool]) -> None:
    """And whether it shows images."""
    operation = operation_of(path)
    assert operation is not None
    told = said(operation, request_body)
    assert (told, told.images) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        parse(body)


def test_keys_of_an_impossible_type_are_named() -> None:
    with pytest.raises(UnreadableRequest, match="`stream`"):
        said(Operation(CHAT), {"model": "m", "stream": "yes"})
    with pytest.raises(UnreadableRequest, match="`model`"):
        said(Operation(CHAT), {"model": ["m"]})
