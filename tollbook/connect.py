"""`tollbook connect`: the exact lines that point an agent at this server.

Each recipe is the shortest one that makes the agent's bill right: the signal that carries usage is on, what
only repeats it is off, prompts stay out. Where a fact about an agent comes from: its own documentation, and
the telemetry recorded from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Where telemetry goes, and whose it is. `http` is a base URL, `grpc` an address or None if unknown."""

    http: str
    grpc: str | None = None
    team: str | None = None
    project: str | None = None

    def resource_attributes(self) -> str:
        """What `OTEL_RESOURCE_ATTRIBUTES` holds; empty when nothing is told."""
        told = (("tollbook.team", self.team), ("tollbook.project", self.project))
        return ",".join(f"{name}={_percent_encoded(value)}" for name, value in told if value)


def lines_for(agent: str, *, http: str, grpc_target: str | None = None, **whose: str | None) -> str:
    """The lines for `agent`, one of AGENTS; `whose` may tell `team` and `project`."""
    return AGENTS[agent](Target(http.rstrip("/"), grpc_target, **whose))


def _claude_code(target: Target) -> str:
    variables = {
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": target.http,
        **_whose(target),
    }
    head = [
        "# Claude Code: the log events carry every call's tokens, the spans its place in the conversation.",
        '# Put these into your shell\'s profile, or as "env" into ~/.claude/settings.json.',
    ]
    return "\n".join([*head, *_exports(variables)])


def _codex(target: Target) -> str:
    def exporter(signal: str) -> str:
        return f'{{ otlp-http = {{ endpoint = "{target.http}/v1/{signal}", protocol = "binary" }} }}'

    lines = [
        "# Codex CLI: put this into ~/.codex/config.toml",
        "[otel]",
        "log_user_prompt = false",
        f"exporter = {exporter('logs')}",
        f"trace_exporter = {exporter('traces')}",
    ]
    return "\n".join([*lines, *_and_variables(target)])


def _gemini_cli(target: Target) -> str:
    telemetry = {
        "enabled": True,
        "target": "local",
        "otlpEndpoint": target.http,
        "otlpProtocol": "http",
        "logPrompts": False,
    }
    lines = [
        "// Gemini CLI: put this into ~/.gemini/settings.json",
        json.dumps({"telemetry": telemetry}, indent=2),
    ]
    return "\n".join([*lines, *_and_variables(target)])


def _sdk(target: Target) -> str:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": target.http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "my-agent",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        **_whose(target),
    }
    head = [
        "# Any program with an OpenTelemetry SDK and gen_ai instrumentation; name it in OTEL_SERVICE_NAME."
    ]
    if target.grpc:
        head.append(f"# Over gRPC: OTEL_EXPORTER_OTLP_PROTOCOL=grpc and the endpoint http://{target.grpc}")
    return "\n".join([*head, *_exports(variables)])


AGENTS: dict[str, Callable[[Target], str]] = {
    "claude-code": _claude_code,
    "codex": _codex,
    "gemini-cli": _gemini_cli,
    "sdk": _sdk,
}


def _exports(variables: dict[str, str]) -> list[str]:
    return [f"export {name}={value}" for name, value in variables.items()]


def _whose(target: Target) -> dict[str, str]:
    told = target.resource_attributes()
    return {"OTEL_RESOURCE_ATTRIBUTES": told} if told else {}


def _and_variables(target: Target) -> list[str]:
    """For agents set up by a file: what only the environment can tell."""
    exports = _exports(_whose(target))
    return ["", "# and into your shell's profile:", *exports] if exports else []


def _percent_encoded(value: str) -> str:
    """A value as the specification of OTEL_RESOURCE_ATTRIBUTES wants it, and safe in a shell."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"
    return "".join(
        char if char in plain else "".join(f"%{byte:02X}" for byte in char.encode()) for char in value
    )
