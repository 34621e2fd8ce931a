// Lets one of the SDKs call: node call.mjs openai|responses|anthropic BASE_URL KEY. Prints what it saw as JSON.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [dialect, base, apiKey] = process.argv.slice(2);
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const FUNCTION = { name: "weather", description: "The weather.", parameters: CITY };
const ASK = 'call weather {"city": "Aachen"}';
const said = (text) => [{ role: "user", content: text }];
const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: base, apiKey, maxRetries: 0 });

const chat = (content, more) => openai.chat.completions.create({ model: "gpt-5", messages: content, ...more });
const messages = (content, more) =>
  anthropic.messages.create({ model: "claude-opus-4-5", max_tokens: 99, messages: content, ...more });
const responses = (input, more) => openai.responses.create({ model: "gpt-5", input, ...more });

const CLIENTS = {
  openai: {
    ask: async (text) => (await chat(said(text))).choices[0].message.content,
    stream: (text, options) =>
      openai.chat.completions.stream({ model: "gpt-5", messages: said(text), stream_options: { include_usage: true } }, options),
    read: async (stream) => {
      const done = await stream.finalChatCompletion();
      return [done.choices[0].message.content, done.usage.completion_tokens];
    },
    tool: async () => {
      const tools = [{ type: "function", function: FUNCTION }];
      const stream = openai.chat.completions.stream({ model: "gpt-5", messages: said(ASK), tools });
      const message = (await stream.finalChatCompletion()).choices[0].message;
      const [call] = message.tool_calls;
      const turns = [...said(ASK), message, { role: "tool", tool_call_id: call.id, content: "dry" }];
      const last = await chat(turns, { tools });
      return [call.function.name, JSON.parse(call.function.arguments), last.choices[0].message.content];
    },
  },
  responses: {
    ask: async (text) => (await responses(text)).output_text,
    stream: (text, options) => openai.responses.stream({ model: "gpt-5", input: text }, options),
    read: async (stream) => {
      const done = await stream.finalResponse();
      return [done.output_text, done.usage.output_tokens];
    },
    tool: async () => {
      const tools = [{ type: "function", strict: false, ...FUNCTION }];
      const done = await openai.responses.stream({ model: "gpt-5", input: said(ASK), tools }).finalResponse();
      const { call_id, name, arguments: text } = done.output[0];
      const turns = [
        ...said(ASK),
        { type: "function_call", call_id, name, arguments: text },
        { type: "function_call_output", call_id, output: "dry" },
      ];
      return [name, JSON.parse(text), (await responses(turns, { tools })).output_text];
    },
  },
  anthropic: {
    ask: async (text) => (await messages(said(text))).content[0].text,
    stream: (text, options) =>
      anthropic.messages.stream({ model: "claude-opus-4-5", max_tokens: 99, messages: said(text) }, options),
    read: async (stream) => {
      const done = await stream.finalMessage();
      return [done.content[0].text, done.usage.output_tokens];
    },
    tool: async () => {
      const tools = [{ name: FUNCTION.name, description: FUNCTION.description, input_schema: CITY }];
      const stream = anthropic.messages.stream({
        model: "claude-opus-4-5", max_tokens: 99, messages: said(ASK), tools,
      });
      const { content } = await stream.finalMessage();
      const result = { type: "tool_result", tool_use_id: content[0].id, content: "dry" };
      const turns = [...said(ASK), { role: "assistant", content }, { role: "user", content: [result] }];
      return [content[0].name, content[0].input, (await messages(turns, { tools })).content[0].text];
    },
  },
};

async function refused(ask, status) {
  try {
    await ask(`status ${status}`);
  } catch (error) {
    return [error.constructor.name, error.status, error.message];
  }
}

async function left(stream) {
  const leaving = new AbortController();
  try {
    for await (const _ of stream("slowly", { signal: leaving.signal })) leaving.abort();
  } catch (error) {
    return error.constructor.name;
  }
  return "ended";
}

const { ask, stream, read, tool } = CLIENTS[dialect];
const seen = { whole: await ask("say hello"), streamed: await read(stream("say hello")), tool: await tool() };
seen.refused = [await refused(ask, 400), await refused(ask, 429), await refused(ask, 500)];
seen.left = await left(stream);
console.log(JSON.stringify(seen));
