// Sends five spans with one of the SDK's own exporters and prints their ids: node send.cjs http|proto|grpc URL none|gzip
const { BatchSpanProcessor, NodeTracerProvider } = require("@opentelemetry/sdk-trace-node");

const [kind, url, compression] = process.argv.slice(2);
const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${kind}`);

async function main() {
  const exporter = new OTLPTraceExporter({ url, compression });
  const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
  const tracer = provider.getTracer("genai");
  const ids = [];
  for (let number = 0; number < 5; number++) {
    const span = tracer.startSpan("chat gpt-4o", { attributes: { "gen_ai.usage.input_tokens": 1000 + number } });
    ids.push(span.spanContext().spanId);
    span.end();
  }
  await provider.forceFlush();
  await provider.shutdown();
  console.log(JSON.stringify(ids));
}

main();
