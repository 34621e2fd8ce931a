"""What answers tell of their use: every way of counting, streams that break, any cut of the bytes."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.sse import EventReader, encoded
from proxy.usage import Told, UsageTap
from proxy.wire import WireFormat

CHAT, RESPONSES, EMBEDDINGS, MESSAGES, GOOGLE = WireFormat


def told(wire_format: WireFormat, *chunks: bytes) -> Told:
    tap = UsageTap(wire_format)
    for chunk in chunks:
        tap.feed(chunk)
    return tap.told()


def events(*payloads: Any) -> bytes:
    return b"".join(encoded(p if isinstance(p, bytes) else json.dumps(p).encode()) for p in payloads)


def counts(answer: Told) -> tuple[int | None, ...]:
    """(input, cache read, cache write, of which 1h, output, reasoning)"""
    return (
        answer.input_tokens,
        answer.cache_read_tokens,
        answer.cache_write_tokens,
        answer.cache_write_1h_tokens,
        answer.output_tokens,
        answer.reasoning_tokens,
    )


_ = None
WAYS_OF_COUNTING = [
    ("OpenAI", CHAT, {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
      "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 0},
      "completion_tokens_details": {"reasoning_tokens": 30}}, (100, 40, _, _, 50, 30)),
    ("DeepSeek", CHAT, {"prompt_tokens": 120, "completion_tokens": 8, "prompt_cache_hit_tokens": 90,
      "prompt_cache_miss_tokens": 30}, (120, 90, _, _, 8, _)),
    ("Moonshot", CHAT, {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 40},
      (100, 40, _, _, 5, _)),
    ("Qwen", CHAT, {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {
      "cached_tokens": 0, "cache_creation_input_tokens": 9,
      "cache_creation": {"ephemeral_5m_input_tokens": 9}}}, (20, 0, 9, _, 5, _)),
    ("OpenRouter", CHAT, {"prompt_tokens": 20, "completion_tokens": 5,
      "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 7}}, (20, 3, 7, _, 5, _)),
    ("xAI leaves reasoning out of completion", CHAT, {"prompt_tokens": 32, "completion_tokens": 9,
      "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}}, (32, _, _, _, 103, 94)),
    ("a prompt smaller than its parts leaves them out", CHAT, {"prompt_tokens": 10, "completion_tokens": 5,
      "cache_read_tokens": 90, "cache_creation_tokens": 5}, (105, 90, 5, _, 5, _)),
    ("a total that proves cached tokens apart", CHAT, {"prompt_tokens": 100, "completion_tokens": 5,
      "total_tokens": 145, "cached_tokens": 40}, (140, 40, _, _, 5, _)),
    ("a zero beside a figure", CHAT, {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 0,
      "prompt_tokens_details": {"cached_tokens": 64}}, (100, 64, _, _, 5, _)),
    ("words for numbers, signs and absurdities are not told", CHAT, {"prompt_tokens": "7",
      "completion_tokens": -1, "cached_tokens": True, "reasoning_tokens": 10**12}, (_, _, _, _, _, _)),
    ("whole numbers with a fraction's dot", CHAT, {"prompt_tokens": 7.0, "completion_tokens": 1.5},
      (7, _, _, _, _, _)),
    ("details that are null", CHAT, {"prompt_tokens": 7, "completion_tokens": 1,
      "prompt_tokens_details": None},
      (7, _, _, _, 1, _)),
    ("output that is not told is unknown", CHAT, {"prompt_tokens": 7}, (7, _, _, _, _, _)),
    ("a total alone", CHAT, {"total_tokens": 5}, (_, _, _, _, _, _)),
    ("OpenAI Responses", RESPONSES, {"input_tokens": 20, "output_tokens": 5, "input_tokens_details": {
      "cached_tokens": 4, "cache_write_tokens": 6}, "output_tokens_details": {"reasoning_tokens": 2}},
      (20, 4, 6, _, 5, 2)),
    ("Anthropic", MESSAGES, {"input_tokens": 250, "output_tokens": 75, "cache_read_input_tokens": 20,
      "cache_creation_input_tokens": 5}, (275, 20, 5, _, 75, _)),
    ("Anthropic, one hour", MESSAGES, {"input_tokens": 3, "output_tokens": 7, "cache_read_input_tokens": 0,
      "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_5m_input_tokens": 10,
      "ephemeral_1h_input_tokens": 20}}, (33, 0, 30, 20, 7, _)),
    ("Anthropic, a total of writes left at zero", MESSAGES, {"input_tokens": 3, "output_tokens": 7,
      "cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_1h_input_tokens": 20}},
      (23, _, 20, 20, 7, _)),
    ("Anthropic's counts on another format's endpoint", CHAT, {"input_tokens": 10, "output_tokens": 2,
      "cache_read_input_tokens": 5}, (15, 5, _, _, 2, _)),
    ("embeddings have no output", EMBEDDINGS, {"prompt_tokens": 8, "total_tokens": 8}, (8, _, _, _, 0, _)),
    ("embeddings that tell a total alone", EMBEDDINGS, {"total_tokens": 8}, (8, _, _, _, 0, _)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wire_format", "usage", "expected"),
    [way[1:] for way in WAYS_OF_COUNTING],
    ids=[way[0] for way in WAYS_OF_COUNTING],
)
def test_each_way_of_counting_comes_to_one_meaning(
    wire_format: WireFormat, usage: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    body = {"id": "x", "model": "m", "usage": usage}
    assert counts(told(wire_format, json.dumps(body).encode())) == expected
    inner = {"type": "response.completed", "response": body} if wire_format is RESPONSES else body
    assert counts(told(wire_format, events({"id": "x"}, inner))) == expected


GEMINI = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "toolUsePromptTokenCount": 7,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 30,
    "totalTokenCount": 157,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 90}, {"modality": "AUDIO", "tokenCount": 10}],
}


def test_gemini_counts_thoughts_and_tool_prompts_beside_the_rest() -> None:
    body = {"responseId": "r", "modelVersion": "gemini-2.5-pro", "usageMetadata": GEMINI}
    answer = told(GOOGLE, json.dumps(body).encode())
    assert counts(answer) == (107, 60, None, None, 50, 30)
    assert answer.audio_input_tokens == 10
    assert (answer.response_id, answer.response_model) == ("r", "gemini-2.5-pro")


def test_gemini_leaves_zeros_out_and_the_total_tells() -> None:
    usage = {"promptTokenCount": 9, "thoughtsTokenCount": 61, "totalTokenCount": 70}
    body = {"candidates": [{"finishReason": "MAX_TOKENS"}], "usageMetadata": usage}
    answer = told(GOOGLE, events(body))
    assert counts(answer) == (9, None, None, None, 61, 61)
    assert answer.complete and answer.finish_reasons == ("MAX_TOKENS",)


def test_geminis_stream_as_an_array_is_read_too() -> None:
    parts = [
        {"candidates": [{"content": {}}]},
        {"candidates": [{"finishReason": "STOP"}], "usageMetadata": GEMINI},
    ]
    body = json.dumps(parts).encode()
    assert told(GOOGLE, body).input_tokens == 107
    cut = told(GOOGLE, body[:-1])  # the connection broke before the bracket
    assert cut.input_tokens == 107


ANTHROPIC_STREAM = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "claude-sonnet-5", "usage": {
        "input_tokens": 12, "cache_read_input_tokens": 800, "cache_creation_input_tokens": 90,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 90},
        "output_tokens": 1, "service_tier": "standard"}}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "\"usage\":{"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 57}},
    {"type": "message_stop"},
]  # fmt: skip


def test_anthropics_start_and_delta_are_one_count() -> None:
    answer = told(MESSAGES, events(*ANTHROPIC_STREAM))
    assert counts(answer) == (902, 800, 90, 90, 57, None)
    assert (answer.response_id, answer.response_model) == ("msg_1", "claude-sonnet-5")
    assert (answer.service_tier, answer.finish_reasons, answer.complete) == ("standard", ("end_turn",), True)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"input_tokens": 12, "cache_read_input_tokens": 800, "output_tokens": 57}, 902),  # said again
        ({"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 57}, 902),  # trailing zeros
        ({"input_tokens": 12, "cache_read_input_tokens": 0, "output_tokens": 57}, 902),
        ({"input_tokens": 40, "output_tokens": 57}, 930),  # a server's tool added input
        # what an estimate called uncached turned out to be in the cache
        ({"input_tokens": 0, "cache_read_input_tokens": 902, "cache_creation_input_tokens": 0}, 902),
    ],
)  # fmt: skip
def test_a_trailing_zero_overwrites_no_figure(delta: dict[str, int], expected: int) -> None:
    stream = [ANTHROPIC_STREAM[0], {"type": "message_delta", "delta": {}, "usage": delta}]
    assert told(MESSAGES, events(*stream)).input_tokens == expected


def test_a_chat_stream_whose_last_block_is_zero_keeps_what_was_told() -> None:
    chunk = {"id": "c", "usage": {"prompt_tokens": 10, "completion_tokens": 4, "cached_tokens": 2}}
    zero = {"id": "c", "usage": {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}}
    assert counts(told(CHAT, events(chunk, zero, b"[DONE]"))) == (10, 2, None, None, 4, None)


def test_usage_is_found_where_moonshot_and_groq_put_it() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    assert (
        told(
            CHAT, events({"id": "a"}, {"choices": [{"finish_reason": "stop", "usage": usage}]})
        ).output_tokens
        == 4
    )
    assert told(CHAT, events({"id": "a"}, {"x_groq": {"usage": usage}})).output_tokens == 4


def test_what_the_provider_claims_it_cost_is_kept_exactly() -> None:
    for usage, cost in [
        ({"cost": 5e-05, "cost_details": {"upstream_inference_cost": 4.35e-06}}, "0.00005"),
        ({"cost_details": {"upstream_inference_cost": 4.35e-06}}, "0.00000435"),
        ({"cost": {"total_cost": 0.006}}, "0.006"),
        ({"cost_in_usd_ticks": 10_000_000_000}, "1"),
    ]:
        body = {"usage": {"prompt_tokens": 16, "completion_tokens": 1, **usage}}
        assert told(CHAT, json.dumps(body).encode()).reported_cost_usd == Decimal(cost)


@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_an_event_is_read_for_its_name_where_its_data_does_not_repeat_it(cut: int) -> None:
    ended = {"response": {"incomplete_details": {"reason": "content_filter"}}}
    stream = encoded(b'{"delta":"Half"}', b"response.output_text.delta") + encoded(
        json.dumps(ended).encode(), b"response.incomplete"
    )
    answer = told(RESPONSES, *(stream[at : at + cut] for at in range(0, len(stream), cut)))
    assert answer.finish_reasons == ("content_filter",)


def test_how_a_responses_stream_ends() -> None:
    body = {"id": "resp_1", "object": "response", "model": "gpt-5.5", "service_tier": "auto", "usage": None}
    created = {"type": "response.created", "response": {**body, "status": "in_progress"}}
    usage = {"input_tokens": 12, "output_tokens": 2, "total_tokens": 14}
    done = {"status": "completed", "usage": usage, "service_tier": "priority"}
    answer = told(RESPONSES, events(created, {"type": "response.completed", "response": {**body, **done}}))
    assert (answer.response_id, answer.service_tier, answer.finish_reasons) == (
        "resp_1",
        "priority",
        ("completed",),
    )
    assert answer.complete and counts(answer)[0] == 12
    cut = {**body, **done, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    answer = told(RESPONSES, events(created, {"type": "response.incomplete", "response": cut}))
    assert answer.complete and answer.finish_reasons == ("max_output_tokens",)
    failed = {**body, "status": "failed", "error": {"code": "server_error", "message": "x"}}
    answer = told(RESPONSES, events(created, {"type": "response.failed", "response": failed}))
    assert not answer.complete and answer.error_type == "server_error"


@pytest.mark.parametrize(
    ("wire_format", "event", "error_type"),
    [
        (
            MESSAGES,
            {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
            "overloaded_error",
        ),
        (CHAT, {"error": {"code": 502, "message": "x"}, "choices": [{"finish_reason": "error"}]}, "502"),
        (CHAT, {"error": "gone"}, "error"),
        (CHAT, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "1008"),
        (RESPONSES, {"type": "error", "code": "rate_limit_exceeded", "message": "x"}, "rate_limit_exceeded"),
        (GOOGLE, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, "429"),
    ],
)
def test_an_error_in_a_stream_that_began_well_is_seen(
    wire_format: WireFormat, event: dict[str, Any], error_type: str
) -> None:
    answer = told(wire_format, events({"id": "x"}, event, b"[DONE]"))
    assert (answer.error_type, answer.complete) == (error_type, False)
    assert answer.error_body is not None and json.loads(answer.error_body) == event


def test_a_stream_that_ends_without_its_last_empty_line_tells_its_last_event() -> None:
    body = events({"id": "x"}, {"usage": {"prompt_tokens": 31, "completion_tokens": 10}})
    assert told(CHAT, body.rstrip(b"\n")).input_tokens == 31
    assert told(CHAT, body[:-20]).input_tokens is None


def test_a_broken_stream_tells_what_came_and_that_it_is_not_complete() -> None:
    answer = told(MESSAGES, events(*ANTHROPIC_STREAM[:3]))
    assert (answer.input_tokens, answer.complete) == (902, False)
    assert told(CHAT) == Told()


def test_of_vectors_only_the_ends_are_read() -> None:
    vector = {"embedding": [0.123456789] * 50_000}
    body = json.dumps({"data": [vector], "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()
    answer = told(EMBEDDINGS, body[:1000], body[1000:])
    assert (answer.input_tokens, answer.output_tokens, answer.complete) == (8, 0, True)


def _cut(body: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(bounds)]


STREAMS = [
    (MESSAGES, events(*ANTHROPIC_STREAM)),
    (CHAT, b"\xef\xbb\xbf: hello\r\n\r\n" + events({"id": "c"}, b"[DONE]").replace(b"\n", b"\r\n")),
    (CHAT, b"data: {\"id\": \"c\",\rdata: \"usage\": {\"prompt_tokens\": 3}}\r\rdata: [DONE]\r\r"),
    (GOOGLE, events({"candidates": [{"finishReason": "STOP"}], "usageMetadata": GEMINI})),
    (CHAT, b"\xef\xbb\xbf \n" + json.dumps({"id": "d", "usage": {"prompt_tokens": 3}}).encode()),
]  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 2000))
def test_any_cut_of_the_bytes_tells_the_same(
    stream: tuple[WireFormat, bytes], places: list[int], length: int
) -> None:
    wire_format, body = stream
    body = body[: len(body) - length % len(body)]
    assert told(wire_format, *_cut(body, places)) == told(wire_format, body)


LINES = st.lists(
    st.sampled_from([b"data: a", b"data:b", b"event: e", b": c", b"", b"id: 1", b"data", b"x" * 30]),
    max_size=12,
)


@settings(deadline=None)
@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 400), max_size=8))
def test_events_do_not_depend_on_cuts_or_line_ends(lines: list[bytes], end: bytes, places: list[int]) -> None:
    whole = b"".join(line + end for line in lines)
    reader, plain = EventReader(), EventReader()
    found = [event for chunk in _cut(whole, places) for event in reader.feed(chunk)]
    assert found == plain.feed(b"".join(line + b"\n" for line in lines))
    assert reader.pending() == plain.pending()


def test_a_mark_of_the_encoding_is_no_part_of_the_first_event_however_it_is_cut() -> None:
    stream = "\ufeffdata: one\n\n".encode()
    for place in range(len(stream)):
        reader = EventReader()
        assert [event.data for piece in (stream[:place], stream[place:]) for event in reader.feed(piece)] == [
            b"one"
        ]


def test_an_event_that_is_too_large_is_dropped_and_the_next_is_read() -> None:
    reader = EventReader(max_event_bytes=100)
    found = [event for _ in range(30) for event in reader.feed(b"data: " + b"x" * 10)]
    found += reader.feed(b"\ndata: more\n\ndata: next\n\n")
    assert [event.data for event in found] == [b"next"]
    assert reader.dropped == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["usage", "message", "response", "choices", "candidates", "delta", "error", "type", "id", "model",
             "usageMetadata", "prompt_tokens", "input_tokens", "cost", "trafficType", "finish_reason",
             "index", "cached_tokens", "cache_read_input_tokens", "output_tokens", "total_tokens",
             "base_resp", "status_code", "x_groq", "promptTokensDetails", "modality", "tokenCount", "object",
             "status", "promptFeedback", "cache_creation"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(list(WireFormat)), st.lists(_JSON, max_size=3), st.booleans())
def test_no_answer_is_strange_enough_to_break_the_tap(
    wire_format: WireFormat, payloads: list[Any], plain: bool
) -> None:
    body = json.dumps(payloads[:1] and payloads[0]).encode() if plain else events(*payloads)
    told(wire_format, body)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_are_strange_enough_to_break_the_tap(body: bytes) -> None:
    for wire_format in WireFormat:
        told(wire_format, body)


_COUNT = st.integers(0, 50) | st.none()
_USAGE = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((
            "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens",
            "cached_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "reasoning_tokens",
            "promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount",
            "cachedContentTokenCount",
        ), _COUNT)
    | {"cache_creation": st.dictionaries(
        st.sampled_from(["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"]), _COUNT)},
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(list(WireFormat)), st.lists(_USAGE, max_size=3))
def test_parts_always_lie_inside_their_wholes(wire_format: WireFormat, usages: list[dict[str, Any]]) -> None:
    answer = told(wire_format, events(*({"id": "x", "usage": usage} for usage in usages)))
    if answer.input_tokens is not None:
        assert answer.input_tokens >= (answer.cache_read_tokens or 0) + (answer.cache_write_tokens or 0)
    if answer.output_tokens is not None:
        assert answer.output_tokens >= (answer.reasoning_tokens or 0)
    assert (answer.cache_write_tokens or 0) >= (answer.cache_write_1h_tokens or 0)
