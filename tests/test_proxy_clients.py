"""Real SDKs at a real house, in Python: streams, tools, errors and leaving, in every dialect."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as google_errors
from google.genai.types import (
    Content,
    FunctionDeclaration,
    GenerateContentConfig,
    HttpOptions,
    Part,
    Schema,
    Tool,
    Type,
)

from tests.model_answers import TEXT
from tests.test_proxy_carry import ANTHROPIC_KEY, OPENAI_KEY, Place, place_in, said

GOOGLE_KEY = "AIza" + "m" * 35
ASK = 'call weather {"city": "Aachen"}'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": CITY}
MODELS = {"chat": "gpt-5", "responses": "gpt-5", "messages": "claude-opus-4-5", "google": "gemini-2.5-flash"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("clients")) as made:
        yield made


def google(place: Place) -> genai.Client:
    options = HttpOptions(base_url=place.house.http)
    return place.opened.enter_context(genai.Client(api_key=GOOGLE_KEY, http_options=options))


# A conversation with a tool: the model calls it, is told what it answered, and says its text.


def chat_with_a_tool(place: Place) -> tuple[str, Any, str | None]:
    completions = place.openai().chat.completions
    tools: Any = [{"type": "function", "function": FUNCTION}]
    turns: list[Any] = said(ASK)["messages"]
    with completions.stream(model="gpt-5", messages=turns, tools=tools) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls or ()
    turns += [message, {"role": "tool", "tool_call_id": call.id, "content": "dry"}]
    last = completions.create(model="gpt-5", messages=turns, tools=tools)
    return call.function.name, json.loads(call.function.arguments), last.choices[0].message.content


def responses_with_a_tool(place: Place) -> tuple[str, Any, str | None]:
    responses = place.openai().responses
    asked: dict[str, Any] = {"model": "gpt-5", "tools": [{"type": "function", **FUNCTION}]}
    turns: list[Any] = said(ASK)["messages"]
    with responses.stream(input=turns, **asked) as stream:
        for _ in stream:
            pass
        [call] = stream.get_final_response().output
    assert call.type == "function_call"
    turns.append({"type": "function_call", "call_id": call.call_id, "name": call.name})
    turns[-1]["arguments"] = call.arguments
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "dry"})
    return call.name, json.loads(call.arguments), responses.create(input=turns, **asked).output_text


def messages_with_a_tool(place: Place) -> tuple[str, Any, str | None]:
    messages = place.anthropic().messages
    tool: Any = {"name": "weather", "description": "The weather.", "input_schema": CITY}
    asked: dict[str, Any] = {"model": "claude-opus-4-5", "max_tokens": 99, "tools": [tool]}
    turns: list[Any] = said(ASK)["messages"]
    with messages.stream(messages=turns, **asked) as stream:
        for _ in stream:
            pass
        answered = stream.get_final_message()
    [call] = answered.content
    assert call.type == "tool_use" and answered.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "dry"}
    turns += [{"role": "assistant", "content": answered.content}, {"role": "user", "content": [result]}]
    [last] = messages.create(messages=turns, **asked).content
    return call.name, call.input, last.text if last.type == "text" else None


def google_with_a_tool(place: Place) -> tuple[str, Any, str | None]:
    client = google(place)
    schema = Schema(type=Type.OBJECT, properties={"city": Schema(type=Type.STRING)})
    tool = Tool(function_declarations=[FunctionDeclaration(name="weather", parameters=schema)])
    asked: dict[str, Any] = {"model": "gemini-2.5-flash", "config": GenerateContentConfig(tools=[tool])}
    turns = [Content(role="user", parts=[Part(text=ASK)])]
    chunks = list(client.models.generate_content_stream(contents=turns, **asked))
    [call] = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert call.name is not None
    turns.append(Content(role="model", parts=[Part(function_call=call)]))
    result = Part.from_function_response(name=call.name, response={"result": "dry"})
    turns.append(Content(role="user", parts=[result]))
    return call.name, call.args, client.models.generate_content(contents=turns, **asked).text


@pytest.mark.parametrize(
    "converse", [chat_with_a_tool, responses_with_a_tool, messages_with_a_tool, google_with_a_tool]
)
def test_a_conversation_with_a_tool(
    place: Place, converse: Callable[[Place], tuple[str, Any, str | None]]
) -> None:
    before = len(place.calls())
    assert converse(place) == ("weather", {"city": "Aachen"}, TEXT)
    calls = place.calls()[before:]
    assert [(call["streaming"], call["output_tokens"], call["cost_status"]) for call in calls] == [
        (True, 5, "priced"),
        (False, 5, "priced"),
    ]


def test_google_genai(place: Place) -> None:
    """Its own path, its own key header; whole and streamed; tokens counted without a row."""
    client, asked = google(place), {"model": "gemini-2.5-flash", "contents": "say hello"}
    before = len(place.calls())
    reply = client.models.generate_content(**asked)  # type: ignore[arg-type]
    assert reply.text == TEXT
    assert place.last.path == "/google/models/gemini-2.5-flash:generateContent"
    assert place.last.headers["x-goog-api-key"] == GOOGLE_KEY
    chunks = list(client.models.generate_content_stream(**asked))  # type: ignore[arg-type]
    assert "".join(chunk.text or "" for chunk in chunks) == TEXT
    assert (place.last.path.rpartition(":")[2], place.last.query) == ("streamGenerateContent", "alt=sse")
    assert client.models.count_tokens(**asked).total_tokens == 7  # type: ignore[arg-type]
    calls = place.calls()[before:]
    assert [call["response_id"] for call in calls] == [reply.response_id, chunks[-1].response_id]
    assert reply.usage_metadata is not None
    assert calls[0]["input_tokens"] == reply.usage_metadata.prompt_token_count


def test_google_genai_speaks_to_another_providers_model(place: Place) -> None:
    """Gemini's own path names a provider and its model; the answer is Gemini's again."""
    options = HttpOptions(base_url=place.house.http)
    client = place.opened.enter_context(genai.Client(api_key=ANTHROPIC_KEY, http_options=options))
    chunks = list(
        client.models.generate_content_stream(model="anthropic/claude-opus-4-5", contents="say hello")
    )
    assert "".join(chunk.text or "" for chunk in chunks) == TEXT
    assert (place.last.path, place.last.headers["x-api-key"]) == ("/anthropic/messages", ANTHROPIC_KEY)


# What a provider refuses is the SDK's own error, with the provider's status.


def ask(place: Place, dialect: str, text: str, *, stream: bool = False) -> None:
    model = MODELS[dialect]
    if dialect == "chat":
        place.openai().chat.completions.create(model=model, stream=stream, **said(text))
    elif dialect == "responses":
        place.openai().responses.create(model=model, stream=stream, input=text)
    elif dialect == "messages":
        place.anthropic().messages.create(model=model, max_tokens=9, stream=stream, **said(text))
    else:
        with google(place) as client:
            asks = client.models.generate_content_stream if stream else client.models.generate_content
            list(asks(model=model, contents=text))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("dialect", MODELS)
def test_a_refusal_is_the_sdks_own_error(place: Place, dialect: str, status: int, *, stream: bool) -> None:
    before = len(place.models.arrived)
    errors = (openai.APIStatusError, anthropic.APIStatusError, google_errors.APIError)
    with pytest.raises(errors, match=f"told to: status {status}") as refused:
        ask(place, dialect, f"status {status}", stream=stream)
    told = refused.value
    assert (told.code if isinstance(told, google_errors.APIError) else told.status_code) == status
    assert len(place.models.arrived) == before + 1, "an SDK asks again, tollbook does not"


def test_sdks_ask_again_and_each_attempt_is_a_row(place: Place) -> None:
    """Their own retries come through: a refusal in the book, and the answer after it."""
    before = len(place.calls())
    client = place.openai().with_options(max_retries=2)
    client.chat.completions.create(model="gpt-5", **said("status 500 once"))
    place.anthropic().with_options(max_retries=2).messages.create(
        model="claude-opus-4-5", max_tokens=9, **said("status 529 once")
    )
    calls = place.calls()[before:]
    assert [(call["http_status"], call["cost_status"]) for call in calls] == [
        (500, "not_billable"),
        (200, "priced"),
        (529, "not_billable"),
        (200, "priced"),
    ]


# Who leaves in the middle ends the provider's work, and the call is in the book.


async def leave_chat(place: Place) -> None:
    client = openai.AsyncOpenAI(base_url=f"{place.house.http}/v1", api_key=OPENAI_KEY, max_retries=0)
    async with client:
        stream = await client.chat.completions.create(model="gpt-5", stream=True, **said("slowly"))
        await anext(aiter(stream))
        await stream.close()


async def leave_responses(place: Place) -> None:
    client = openai.AsyncOpenAI(base_url=f"{place.house.http}/v1", api_key=OPENAI_KEY, max_retries=0)
    async with client, client.responses.stream(model="gpt-5", input="slowly") as stream:
        await anext(aiter(stream))


async def leave_messages(place: Place) -> None:
    client = anthropic.AsyncAnthropic(base_url=place.house.http, api_key=ANTHROPIC_KEY, max_retries=0)
    asked: Any = {"model": "claude-opus-4-5", "max_tokens": 9, **said("slowly")}
    async with client, client.messages.stream(**asked) as stream:
        await anext(aiter(stream))


async def leave_before_an_answer(place: Place) -> None:
    client = openai.AsyncOpenAI(base_url=f"{place.house.http}/v1", api_key=OPENAI_KEY, max_retries=0)
    async with client:
        asking = asyncio.create_task(client.chat.completions.create(model="gpt-5", **said("stall")))
        await asyncio.sleep(0.3)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def leave_google(place: Place) -> None:
    async with google(place).aio as client:
        stream = await client.models.generate_content_stream(model="gemini-2.5-flash", contents="slowly")
        await anext(aiter(stream))


@pytest.mark.parametrize(
    "leave", [leave_chat, leave_responses, leave_messages, leave_before_an_answer, leave_google]
)
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
def test_leaving_ends_the_call(place: Place, leave: Callable[[Place], Any]) -> None:
    before, left = len(place.calls()), place.models.left
    asyncio.run(leave(place))
    place.until(lambda: place.models.left == left + 1, "the provider is left too")
    place.until(lambda: len(place.calls()) > before, "the call is in the book")
    [call] = place.calls()[before:]
    assert call["cost_status"] in ("usage_unknown", "priced"), "never free"
