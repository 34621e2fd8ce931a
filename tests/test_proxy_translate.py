"""What is written in one format and read again is the same; what cannot be said is refused by its name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.counts import Counts
from proxy.sse import EventReader
from proxy.translate import (
    CannotCarry,
    answer_translator,
    chat_answer,
    chat_request_reader,
    chat_request_writer,
    events,
    google_answer,
    google_request_reader,
    google_request_writer,
    messages_answer,
    messages_request_reader,
    messages_request_writer,
    responses_answer_reader,
    responses_answer_writer,
    responses_request_reader,
    responses_request_writer,
    translate_request,
    translated,
)
from proxy.translate.conversation import (
    HINTS,
    AnswerFormat,
    Media,
    Message,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from proxy.translate.schema import with_items
from proxy.wire import WireFormat

CHAT, RESPONSES, EMBEDDINGS, MESSAGES, GOOGLE = WireFormat
FORMATS = [CHAT, RESPONSES, MESSAGES, GOOGLE]
READERS: dict[WireFormat, Callable[..., Request]] = {
    CHAT: chat_request_reader.read,
    RESPONSES: responses_request_reader.read,
    MESSAGES: messages_request_reader.read,
    GOOGLE: google_request_reader.read,
}
WRITERS: dict[WireFormat, Callable[..., tuple[dict[str, Any], list[str]]]] = {
    CHAT: chat_request_writer.write,
    RESPONSES: responses_request_writer.write,
    MESSAGES: messages_request_writer.write,
    GOOGLE: google_request_writer.write,
}

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)
NAMES = st.sampled_from(["search", "read_file", "f"])
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), st.integers() | WORDS | st.none(), max_size=2).map(
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
)
TEXTS = WORDS.map(Text)
IMAGES = st.sampled_from(
    [Media("image", "image/png", "aGk="), Media("image", None, None, "https://h.example/i.png")]
)
SCHEMAS = st.sampled_from(
    [
        {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        {"type": "object", "properties": {"type": {"type": "array", "items": {"type": "integer"}}}},
        {"type": "object", "properties": {}, "additionalProperties": False, "$defs": {"A": {"const": 1}}},
    ]
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Turns in an order that every format can say, ids unique over the conversation."""
    ids = (f"call_{number}" for number in itertools.count(1))
    messages: list[Message] = [Message("system", (draw(TEXTS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", tuple(draw(st.lists(TEXTS | IMAGES, min_size=1, max_size=3)))))
        said = tuple(draw(st.lists(TEXTS, max_size=1)))
        calls = tuple(
            ToolCall(next(ids), draw(NAMES), draw(ARGUMENTS)) for _ in range(draw(st.integers(0, 2)))
        )
        if said or calls:
            messages.append(Message("assistant", (*said, *calls)))
        if calls:
            results = [ToolResult(call.id, (draw(TEXTS),), failed=draw(st.booleans())) for call in calls]
            messages.append(Message("user", tuple(results)))
    return tuple(messages)


REQUESTS = st.builds(
    Request,
    model=st.just("some-model"),
    messages=conversations(),
    tools=st.lists(st.builds(Tool, NAMES, st.none() | WORDS, SCHEMAS), max_size=2).map(tuple),
    tool_choice=st.none()
    | st.sampled_from([ToolChoice(m) for m in ("auto", "none", "required")] + [ToolChoice("named", "f")]),  # type: ignore[arg-type]
    max_output_tokens=st.integers(1, 9999),
    sampling=st.fixed_dictionaries({}, optional={"temperature": st.sampled_from([0, 0.5, 1])}),
    answer_format=st.none() | SCHEMAS.map(AnswerFormat),
    streaming=st.booleans(),
)


def plain(request: Request) -> Request:
    """Without what is a matter of wording: who names results, how failures are told, names of schemas."""

    def result(part: Any) -> Any:
        if not isinstance(part, ToolResult):
            return replace(part, signature=None) if isinstance(part, ToolCall) else part
        text = "".join(inner.text for inner in part.parts if isinstance(inner, Text)).removeprefix("Error: ")
        return replace(part, name=None, failed=False, parts=(Text(text),))

    messages: list[Message] = []
    for message in request.messages:
        parts = tuple(map(result, message.parts))
        if messages and messages[-1].role == message.role and all(isinstance(p, ToolResult) for p in parts):
            messages[-1] = Message(message.role, messages[-1].parts + parts)
        else:
            messages.append(Message(message.role, parts))
    wanted = request.answer_format and AnswerFormat(request.answer_format.schema)
    tools = tuple(replace(tool, strict=None) for tool in request.tools)
    return replace(request, messages=tuple(messages), tools=tools, answer_format=wanted, stream_usage=False)


def read_again(request: Request, wire_format: WireFormat) -> Request:
    body = json.loads(json.dumps(WRITERS[wire_format](request)[0]))
    if wire_format is GOOGLE:
        return google_request_reader.read(body, request.model, streaming=request.streaming)
    return READERS[wire_format](body, request.model)


@settings(deadline=None)
@given(REQUESTS, st.permutations(FORMATS))
def test_a_request_is_the_same_after_a_journey_through_every_format(
    request_: Request, journey: list[WireFormat]
) -> None:
    there = request_
    for wire_format in journey:
        there = read_again(there, wire_format)
        assert plain(there) == plain(request_), wire_format


PARTS = st.lists(
    TEXTS | st.builds(ToolCall, st.uuids().map(str), NAMES, ARGUMENTS) | WORDS.map(Thinking), max_size=4
)
COUNTS = st.builds(
    lambda uncached, read, write, output, thoughts: Counts(
        uncached + read + write, read, write, None, output + thoughts, thoughts
    ),
    *[st.integers(1, 1000)] * 5,
)


@st.composite
def answers(draw: st.DrawFn) -> events.Answer:
    """Neighbours of one kind are one part; calls come last, as models make them."""
    parts = sorted(draw(PARTS), key=lambda part: (isinstance(part, ToolCall), isinstance(part, Text)))
    joined: list[Any] = []
    for part in parts:
        if joined and type(joined[-1]) is type(part) and not isinstance(part, ToolCall):
            joined[-1] = type(part)(joined[-1].text + part.text)
        else:
            joined.append(part)
    called = any(isinstance(part, ToolCall) for part in parts)
    reason: Any = draw(st.sampled_from(["tool_calls"] if called else ["stop", "length"]))
    return events.Answer("id_1", "some-model", joined, events.Finished(reason, draw(COUNTS)))


def told(answer: events.Answer) -> list[events.Event]:
    """The events of an answer, its texts cut into characters."""
    found: list[events.Event] = [events.Started(answer.id, answer.model)]
    calls = 0
    for part in answer.parts:
        if isinstance(part, ToolCall):
            found.append(events.CallStarted(calls, part.id, part.name))
            found += [events.CallDelta(calls, piece) for piece in part.arguments]
            found.append(events.CallEnded(calls))
            calls += 1
        else:
            delta = events.TextDelta if isinstance(part, Text) else events.ThoughtDelta
            found += [delta(piece) for piece in part.text]
            found += [] if isinstance(part, Text) else [events.ThoughtEnded()]
    assert answer.finished is not None
    return [*found, answer.finished]


ANSWERS: dict[WireFormat, Any] = {
    CHAT: chat_answer,
    RESPONSES: SimpleNamespace(
        Reader=responses_answer_reader.Reader,
        Writer=responses_answer_writer.Writer,
        body_of=responses_answer_writer.body_of,
    ),
    MESSAGES: messages_answer,
    GOOGLE: google_answer,
}
ASKING: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def comparable(answer: events.Answer, wire_format: WireFormat) -> Any:
    """Anthropic tells no reasoning tokens."""
    counts = answer.finished and answer.finished.counts
    if counts is not None:
        thought = None if wire_format is MESSAGES else counts.reasoning_tokens or None
        written = counts.cache_write_tokens or None
        counts = replace(counts, reasoning_tokens=thought, cache_write_tokens=written)
    thoughts = [
        replace(p, opaque=None, origin=None, item_id=None) if isinstance(p, Thinking) else p
        for p in answer.parts
    ]
    return answer.id, answer.model, thoughts, answer.finished and answer.finished.reason, counts


def expected(answer: events.Answer, wire_format: WireFormat) -> Any:
    told_write = replace(answer.finished.counts) if answer.finished else Counts()
    if wire_format is GOOGLE:  # writes have no place there
        told_write = replace(told_write, cache_write_tokens=None)
    finished = answer.finished and replace(answer.finished, counts=told_write)
    return comparable(replace(answer, finished=finished), wire_format)


@settings(deadline=None)
@given(answers(), st.sampled_from(FORMATS))
def test_a_whole_answer_reads_as_it_was_written(answer: events.Answer, wire_format: WireFormat) -> None:
    body = json.loads(json.dumps(ANSWERS[wire_format].body_of(answer, ASKING, 1)))
    again = events.collected(ANSWERS[wire_format].Reader().body(body, b""))
    assert comparable(again, wire_format) == expected(answer, wire_format)


@settings(deadline=None, max_examples=60)
@given(answers(), st.sampled_from(FORMATS), st.sampled_from(FORMATS), st.integers(1, 60))
def test_a_stream_tells_the_same_in_every_format_however_it_is_cut(
    answer: events.Answer, target: WireFormat, source: WireFormat, size: int
) -> None:
    writer = ANSWERS[target].Writer(ASKING, "id_0", 1)
    stream = b"".join(writer.write(event) for event in told(answer)) + writer.end()
    translator = answer_translator(source, target, ASKING)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    out = b"".join(map(translator.feed, pieces)) + translator.finish()
    assert translator.failed is None
    reader = ANSWERS[source].Reader()
    data = [e.data for e in EventReader().feed(out) if e.data != b"[DONE]"]
    found = [event for one in data for event in reader.feed(json.loads(one), one)]
    again = events.collected([*found, *reader.finish()])
    once = replace(answer, finished=answer.finished)
    for wire_format in (target, source):
        once.finished = replace(once.finished, counts=expected(once, wire_format)[4])  # type: ignore[type-var]
    assert comparable(again, source) == comparable(once, source)


REFUSED = [
    (CHAT, MESSAGES, {"n": 2}, "n"),
    (CHAT, MESSAGES, {"logit_bias": {"1": 2}}, "logit_bias"),
    (CHAT, MESSAGES, {"seed": 1}, "seed"),
    (CHAT, MESSAGES, {"presence_penalty": 0.5}, "presence_penalty"),
    (CHAT, MESSAGES, {"temperature": 1.5}, "temperature above 1"),
    (CHAT, MESSAGES, {"something_new": True}, "something_new"),
    (CHAT, MESSAGES, {"service_tier": "flex"}, "service_tier flex"),
    (CHAT, GOOGLE, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.custom"),
    (CHAT, RESPONSES, {"stop": ["x"]}, "stop"),
    (MESSAGES, CHAT, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.web_search"),
    (MESSAGES, CHAT, {"mcp_servers": [{}]}, "mcp_servers"),
    (MESSAGES, RESPONSES, {"stop_sequences": ["x"]}, "stop"),
    (RESPONSES, CHAT, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, MESSAGES, {"tools": [{"type": "file_search"}]}, "tools.file_search"),
    (RESPONSES, MESSAGES, {"background": True}, "background"),
    (GOOGLE, CHAT, {"cachedContent": "cachedContents/1"}, "cachedContent"),
    (GOOGLE, MESSAGES, {"tools": [{"googleSearch": {"a": 1}}]}, "tools.googleSearch"),
    (GOOGLE, CHAT, {"generationConfig": {"candidateCount": 2}}, "generationConfig.candidateCount"),
]
SAYS = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    MESSAGES: {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"input": "hi"},
    GOOGLE: {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
}


@pytest.mark.parametrize(("source", "target", "asked", "name"), REFUSED)
def test_what_cannot_be_carried_is_refused_by_its_name(
    source: WireFormat, target: WireFormat, asked: dict[str, Any], name: str
) -> None:
    with pytest.raises(CannotCarry) as refused:
        translate_request({**SAYS[source], **asked}, source, target, model="m")
    assert refused.value.names == (name,)


def test_everything_that_cannot_be_carried_is_named_at_once() -> None:
    body = {**SAYS[CHAT], "n": 3, "logprobs": True, "audio": {"voice": "x"}}
    with pytest.raises(CannotCarry, match="n, logprobs, audio"):
        translate_request(body, CHAT, GOOGLE, model="m")


def test_hints_are_left_out_and_that_is_told() -> None:
    body = {
        **SAYS[MESSAGES],
        "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "u" * 100},
        "context_management": {"edits": []},
    }
    done = translated(body, MESSAGES, CHAT, model="gpt-5.5")
    assert set(done.left_out) == {"cache_control", "metadata.user_id", "context_management"}
    assert done.body["messages"][0] == {"role": "system", "content": "Be kind."}


def test_values_that_say_nothing_are_not_refused() -> None:
    body = {
        **SAYS[CHAT],
        "n": 1,
        "logprobs": False,
        "logit_bias": None,
        "presence_penalty": 0,
        "modalities": ["text"],
    }
    assert translate_request(body, CHAT, MESSAGES, model="m")["messages"]


def test_cache_marks_stay_where_the_target_has_them() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": mark}]}]}
    written = translate_request(body, CHAT, MESSAGES, model="claude-sonnet-5")
    assert written["messages"][0]["content"] == [{"type": "text", "text": "a", "cache_control": mark}]


@pytest.mark.parametrize(
    ("target", "model", "expected_keys"),
    [
        (
            MESSAGES,
            "claude-sonnet-4-5",
            {"thinking": {"type": "enabled", "budget_tokens": 8192}, "max_tokens": 12288},
        ),
        (
            MESSAGES,
            "claude-opus-4-7",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}},
        ),
        (RESPONSES, "gpt-5.5", {"reasoning": {"effort": "medium"}}),
        (GOOGLE, "gemini-2.5-pro", {"generationConfig": {"thinkingConfig": {"thinkingBudget": 8192}}}),
        (GOOGLE, "gemini-3-pro", {"generationConfig": {"thinkingConfig": {"thinkingLevel": "medium"}}}),
    ],
)
def test_how_hard_to_think_is_said_as_the_model_takes_it(
    target: WireFormat, model: str, expected_keys: dict[str, Any]
) -> None:
    body = {**SAYS[CHAT], "reasoning_effort": "medium"}
    written = translate_request(body, CHAT, target, model=model)
    assert {key: written[key] for key in expected_keys} == expected_keys


def test_a_switch_to_think_reaches_models_that_have_one() -> None:
    body = {**SAYS[MESSAGES], "thinking": {"type": "enabled", "budget_tokens": 2048}}
    assert translate_request(body, MESSAGES, CHAT, model="glm-5.1")["thinking"] == {"type": "enabled"}
    assert translate_request(body, MESSAGES, CHAT, model="gpt-5.5")["reasoning_effort"] == "low"


SIGNED = {"type": "thinking", "thinking": "hm", "signature": "proof"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]}


def test_thoughts_go_back_only_to_those_who_can_check_them() -> None:
    body = {**SAYS[MESSAGES], "messages": [{"role": "assistant", "content": [SIGNED, USE]}, RESULT]}
    same = translate_request(body, MESSAGES, MESSAGES, model="claude-sonnet-4-5")
    assert same["messages"][0]["content"][0] == SIGNED
    chat = translated(body, MESSAGES, CHAT, model="deepseek-v4-pro").body
    assert chat["messages"][0]["reasoning_content"] == "hm"
    assert "reasoning_content" not in translate_request(body, MESSAGES, CHAT, model="gpt-5.5")["messages"][0]
    assert translated(body, MESSAGES, GOOGLE, model="gemini-3-pro").left_out == ("thinking",)


def test_thinking_is_not_asked_for_where_its_beginning_is_lost() -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "ok"},
    ]
    done = translated(
        {"messages": turns, "reasoning_effort": "high"}, CHAT, MESSAGES, model="claude-sonnet-4-5"
    )
    assert "thinking" not in done.body and "thinking" in done.left_out


def test_results_of_parallel_calls_are_one_turn_and_images_in_them_arrive() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    other = {"type": "tool_result", "tool_use_id": "t2", "content": "2", "is_error": True}
    use = [USE, {**USE, "id": "t2"}]
    turns = [{"role": "assistant", "content": use}, {"role": "user", "content": [result, other]}]
    body = {**SAYS[MESSAGES], "messages": turns}
    chat = translate_request(body, MESSAGES, CHAT, model="m")["messages"]
    assert [message["role"] for message in chat] == ["assistant", "tool", "tool", "user"]
    assert chat[2]["content"] == "Error: 2"
    assert chat[3]["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]
    google = translate_request(body, MESSAGES, GOOGLE, model="m")["contents"][1]["parts"]
    assert [next(iter(part)) for part in google] == ["functionResponse", "inlineData", "functionResponse"]
    assert google[2]["functionResponse"]["response"] == {"error": "2"}


def test_gemini_calls_without_ids_are_paired_with_their_results_in_order() -> None:
    calls = [{"functionCall": {"name": "f", "args": {"n": n}}} for n in (1, 2)]
    results = [{"functionResponse": {"name": "f", "response": {"result": str(n)}}} for n in (1, 2)]
    body = {"contents": [{"role": "model", "parts": calls}, {"role": "user", "parts": results}]}
    chat = translate_request(body, GOOGLE, CHAT, model="m")["messages"]
    assert [call["id"] for call in chat[0]["tool_calls"]] == [m["tool_call_id"] for m in chat[1:]]
    assert [message["content"] for message in chat[1:]] == ["1", "2"]


def test_arrays_without_items_get_them_where_they_are_demanded_and_names_of_users_stay() -> None:
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array"}, "enum": {"enum": [{"type": "array"}]}},
    }
    whole = with_items(schema)
    assert whole["properties"]["items"] == {"type": "array", "items": {}}
    assert whole["properties"]["enum"] == {"enum": [{"type": "array"}]}


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


def call_delta(index: int, arguments: str, **told: Any) -> bytes:
    function = {"arguments": arguments} | ({"name": told.pop("name")} if "name" in told else {})
    return chunk({"tool_calls": [{"index": index, "function": function, **told}]})


INTERLEAVED = b"".join(
    [
        call_delta(0, "", id="a", name="f"),
        call_delta(0, '{"x"'),
        call_delta(1, '{"y"', id="b", name="g"),
        call_delta(0, ":1}"),
        chunk({"content": "said between"}),
        call_delta(1, ":2}"),
        chunk({}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize("source", [RESPONSES, MESSAGES, GOOGLE])
def test_calls_that_overlap_are_told_one_after_the_other(source: WireFormat) -> None:
    translator = answer_translator(source, CHAT, {})
    out = translator.feed(INTERLEAVED) + translator.finish()
    reader = ANSWERS[source].Reader()
    found = [event for e in EventReader().feed(out) for event in reader.feed(json.loads(e.data), e.data)]
    answer = events.collected([*found, *reader.finish()])
    assert [(c.id, json.loads(c.arguments)) for c in answer.calls] == [("a", {"x": 1}), ("b", {"y": 2})]
    assert answer.text == "said between"


@pytest.mark.parametrize("source", FORMATS)
def test_a_stream_that_breaks_off_ends_with_an_error(source: WireFormat) -> None:
    translator = answer_translator(source, CHAT, {})
    out = translator.feed(chunk({"content": "half"})) + translator.finish()
    assert translator.failed is not None and translator.failed.kind == "network"
    last = json.loads(EventReader().feed(out)[-1].data)
    assert "broke off" in last.get("response", last)["error"]["message"]


@pytest.mark.parametrize("source", FORMATS)
def test_an_error_in_the_stream_is_told_once_in_the_callers_dialect(source: WireFormat) -> None:
    translator = answer_translator(source, MESSAGES, {})
    failing = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    out = translator.feed(failing) + translator.feed(failing) + translator.finish()
    assert translator.failed is not None and translator.failed.kind == "overloaded"
    assert out.count(b"event: error" if source in (RESPONSES, MESSAGES) else b"busy") == 1


def test_a_stream_collected_for_a_caller_that_asked_for_none() -> None:
    body = answer_translator(MESSAGES, CHAT, {}).collected_body(INTERLEAVED)
    assert [block["type"] for block in body["content"]] == ["tool_use", "tool_use", "text"]
    assert body["stop_reason"] == "tool_use"


def test_usage_goes_to_those_chat_callers_who_asked_for_it() -> None:
    usage = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    stream = chunk({"content": "x"}) + chunk({}, "stop") + usage + b"data: [DONE]\n\n"
    silent = answer_translator(CHAT, CHAT, {"stream": True})
    assert b'"usage"' not in silent.feed(stream)
    asking = answer_translator(CHAT, CHAT, ASKING)
    assert b'"prompt_tokens":3' in asking.feed(stream)


def test_tools_of_plain_text_are_functions_of_one_text_elsewhere_and_come_back_as_text() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tool = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": grammar}
    patch = '*** Begin Patch\n+"x"\n*** End Patch'
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": patch}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}
    request = {"input": [call, output], "tools": [tool], "client_metadata": {"x": "y"}, "stream": True}
    done = translated(request, RESPONSES, CHAT, model="m")
    function = done.body["tools"][0]["function"]
    assert function["parameters"]["required"] == ["input"] and 'start: "x"' in function["description"]
    sent = done.body["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"input": patch} and done.left_out == ("client_metadata",)

    pieces = [call_delta(0, "", id="c2", name="apply_patch"), *(call_delta(0, piece) for piece in sent)]
    stream = b"".join([*pieces, chunk({}, "tool_calls"), b"data: [DONE]\n\n"])
    translator = answer_translator(RESPONSES, CHAT, request)
    told_events = [
        json.loads(e.data) for e in EventReader().feed(translator.feed(stream) + translator.finish())
    ]
    deltas = [e["delta"] for e in told_events if e["type"] == "response.custom_tool_call_input.delta"]
    items = [e["item"] for e in told_events if e["type"] == "response.output_item.done"]
    assert deltas == [patch]
    assert [(i["type"], i["call_id"], i["input"]) for i in items] == [("custom_tool_call", "c2", patch)]
    assert told_events[-1]["response"]["output"][0]["input"] == patch


def test_a_search_for_tools_is_a_function_elsewhere_and_what_it_found_are_tools() -> None:
    search = {
        "type": "tool_search",
        "execution": "client",
        "parameters": {"type": "object", "properties": {}},
    }
    found = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "tool_search_call", "call_id": "c1", "execution": "client", "arguments": {"query": "q"}}
    output = {"type": "tool_search_output", "call_id": "c1", "execution": "client", "tools": [found]}
    request = {"input": [call, output], "tools": [search], "stream": True}
    sent = translate_request(request, RESPONSES, CHAT, model="m")
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["tool_search", "f"]
    assert sent["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"query":"q"}'

    stream = call_delta(0, '{"query":', id="c2", name="tool_search") + call_delta(0, '"x"}')
    translator = answer_translator(RESPONSES, CHAT, request)
    out = translator.feed(stream + chunk({}, "tool_calls")) + translator.finish()
    items = [
        json.loads(e.data)["item"] for e in EventReader().feed(out) if e.name == b"response.output_item.done"
    ]
    assert [(i["type"], i["call_id"], i["arguments"]) for i in items] == [
        ("tool_search_call", "c2", {"query": "x"})
    ]
    with pytest.raises(CannotCarry, match="tool_search"):
        hosted = {"input": "hi", "tools": [{**search, "execution": "server"}]}
        translate_request(hosted, RESPONSES, CHAT, model="m")


def test_integers_of_any_size_come_through_unchanged() -> None:
    huge = 2**80 + 1
    call = {"functionCall": {"name": "f", "args": {"n": huge}}}
    event = {"candidates": [{"content": {"parts": [call]}, "finishReason": "STOP"}]}
    out = answer_translator(CHAT, GOOGLE, {}).feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert f'{{\\"n\\":{huge}}}'.encode() in out


def test_what_a_door_refuses_is_not_translated_to_it() -> None:
    """Thoughts of earlier turns are told to be lost; that a stream is not asked for its usage is no loss."""
    said = {"type": "text", "text": "hello"}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [SIGNED, said]}]
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": turns}
    whole = translated(body, MESSAGES, CHAT, model="devstral-2")
    assert whole.body["messages"][1]["reasoning_content"] and "stream_options" in whole.body
    lacks = ["stream_options", "reasoning_content", "store"]
    bare = translated(body, MESSAGES, CHAT, model="devstral-2", chat_lacks=lacks)
    assert "reasoning_content" not in json.dumps(bare.body) and "stream_options" not in bare.body
    assert bare.left_out == ("thinking",)


def test_googles_own_settings_go_to_google_and_nowhere_else() -> None:
    own = {"responseModalities": ["TEXT", "IMAGE"], "imageConfig": {"aspectRatio": "1:1"}, "temperature": 0}
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "generationConfig": own}
    assert translate_request(body, CHAT, GOOGLE, model="g")["generationConfig"] == own | {"temperature": 1}
    for target in (RESPONSES, MESSAGES, CHAT):
        with pytest.raises(CannotCarry, match="generationConfig"):
            translate_request(body, CHAT, target, model="m")
    with pytest.raises(CannotCarry, match="generationConfig"):
        translate_request(body | {"generationConfig": "hot"}, CHAT, GOOGLE, model="g")


def test_the_page_names_every_hint_that_may_be_left_out() -> None:
    page = (Path(__file__).parent.parent / "docs" / "translation.md").read_text()
    assert not {hint for hint in HINTS if f"`{hint}`" not in page}
