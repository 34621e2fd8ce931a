"""Claude Code and Codex, from npm, working through a real house: one row per call, telemetry fused.

`make agents` (AGENTS=1) installs both into a cache folder (some minutes, 800 MB) and prints the bill.
They talk to the model server on loopback and to nobody else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node import installed
from tests.test_proxy_carry import ANTHROPIC_KEY, OPENAI_KEY, Place, place_in

pytestmark = pytest.mark.skipif(
    "AGENTS" not in os.environ, reason="AGENTS is not set (make agents): it installs two agents by npm"
)

INSTALL_S, WORK_S = 1800, 300
CODEX = """
model = "gpt-5"
model_provider = "tollbook"

[model_providers.tollbook]
name = "tollbook"
base_url = "{http}/v1"
env_key = "OPENAI_API_KEY"
wire_api = "responses"

"""
BILL = """
SELECT agent, model, status, http_status, observation_count AS told_by, input_tokens AS input,
       cache_read_tokens AS cached, output_tokens AS output, cost_status, billed_cost_usd
FROM calls ORDER BY started_at
"""


class Agent:
    """A program of npm's that works without asking, in a home and a folder of its own."""

    service: str
    model: str
    tool: str

    def __init__(self, programs: Path, place: Place, home: Path) -> None:
        self._programs, self._place, self._home = programs, place, home
        (home / "work").mkdir(parents=True)

    def work(self, prompt: str) -> subprocess.CompletedProcess[str]:
        """Have it answer one prompt."""
        return subprocess.run(
            [*self._command(), prompt],
            env={"PATH": os.environ["PATH"], "HOME": str(self._home), **self._environment()},
            cwd=self._home / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WORK_S,
            check=False,
        )

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        raise NotImplementedError

    def version(self) -> str:
        """What it calls itself."""
        program = [self._command()[0], "--version"]
        return subprocess.run(program, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    def _connect(self, name: str) -> str:
        """What `tollbook connect` tells its user to set up."""
        command = [sys.executable, "-m", "tollbook.cli", "connect", name, "--url", self._place.house.http]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class ClaudeCode(Agent):
    service, model = "claude-code", "anthropic/claude-opus-4-5"
    tool = 'call Bash {"command": "echo hi", "description": "say hi"}'

    def _command(self) -> list[str]:
        asks = ["-p", "--model", "claude-opus-4-5", "--allowedTools=Bash(echo:*)"]
        return [str(self._programs / "claude"), *asks]

    def _environment(self) -> dict[str, str]:
        exports = re.findall(r"^export (\w+)=(.*)$", self._connect("claude-code"), re.MULTILINE)
        return {
            **dict(exports),
            "ANTHROPIC_BASE_URL": self._place.house.http,
            "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }


class Codex(Agent):
    service, model = "codex_exec", "openai/gpt-5"
    tool = 'call exec_command {"cmd": "echo hi"}'

    def _command(self) -> list[str]:
        return [str(self._programs / "codex"), "exec", "--skip-git-repo-check"]

    def _environment(self) -> dict[str, str]:
        folder = self._home / ".codex"
        folder.mkdir(exist_ok=True)
        settings = CODEX.format(http=self._place.house.http) + self._connect("codex")
        (folder / "config.toml").write_text(settings)
        return {"OPENAI_API_KEY": OPENAI_KEY}


@pytest.fixture(scope="module")
def programs() -> Path:
    return installed("agents", timeout_s=INSTALL_S) / "node_modules" / ".bin"


@pytest.fixture(scope="module")
def place(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    del programs  # where they cannot be had, no house is built
    with place_in(tmp_path_factory.mktemp("agents")) as made:
        yield made
        command = [sys.executable, "-m", "tollbook.cli", "sql", BILL, "--url", made.house.http]
        subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize("kind", [ClaudeCode, Codex])
def test_an_agent_works_and_its_bill_is_right(
    programs: Path, place: Place, kind: type[Agent], tmp_path: Path
) -> None:
    agent = kind(programs, place, tmp_path)
    before, arrived = len(place.calls()), len(place.models.arrived)
    for prompt in ("say hello", agent.tool, "status 529 once"):
        done = agent.work(prompt)
        assert done.returncode == 0 and "Hello, tollbook!" in done.stdout, (prompt, done)
    refused = agent.work("status 400")
    assert "told to: status 400" in refused.stdout + refused.stderr, refused
    asked = [each for each in place.models.arrived[arrived:] if not each.path.endswith("/models")]
    place.until(lambda: _told(place.calls()[before:]), "its telemetry tells of every answered call", 60)
    rows = place.calls()[before:]
    shown = [(row["http_status"], row["cost_status"], row["observation_count"]) for row in rows]
    assert len(rows) == len(asked), f"one row per call: {shown}"
    assert {(row["service"], row["model"], row["basis"]) for row in rows} == {
        (agent.service, agent.model, "proxy")
    }
    statuses = Counter(row["http_status"] for row in rows)
    assert set(statuses) == {200, 400, 529} and (statuses[200], statuses[529]) == (4, 1), shown
    assert {row["cost_status"] for row in rows if row["http_status"] == 200} == {"priced"}
    assert {row["cost_status"] for row in rows if row["http_status"] != 200} == {"not_billable"}
    assert all(row["session_id"] for row in rows)
    sys.stderr.write(f"{agent.version()}: {len(rows)} calls, {len(rows)} rows\n")


def _told(rows: list[dict[str, Any]]) -> bool:
    """Whether each answered call is told by the proxy and by the agent."""
    answered = [row for row in rows if row["http_status"] == 200]
    return len(answered) >= 4 and all(row["observation_count"] > 1 for row in answered)
