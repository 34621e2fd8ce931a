"""Settings: precedence, strictness, and errors that help without ever showing a value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from tollbook.settings import Settings, env_name, fields, sections, value_of
from tollbook.settings_load import SettingsError, line_of, load
from tollbook.settings_page import allowed_values, reference_page, shown

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no variable and no home of the machine's own."""
    for name in [name for name in os.environ if name.startswith("TOLLBOOK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)


def told(sentences: tuple[str, ...], part: str) -> str:
    matching = [sentence for sentence in sentences if part in sentence]
    assert len(matching) == 1, sentences
    return matching[0]


def test_defaults_stand_alone(tmp_path: Path) -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert set(loaded.origins) == set(fields())
    assert set(loaded.origins.values()) == {"default"}
    assert (loaded.settings.server.http_port, loaded.settings.server.grpc_port) == (4318, 4317)


def test_flags_beat_environment_beats_file_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tollbook.toml").write_text(
        "# mine\n[server]\nhttp_port = 1\ngrpc_port = 2\n[sql]\ntimeout_s = 3\n"
    )
    monkeypatch.setenv("TOLLBOOK_SERVER_HTTP_PORT", "11")
    monkeypatch.setenv("TOLLBOOK_SERVER_GRPC_PORT", "12")
    monkeypatch.setenv("TOLLBOOK_SERVER_ALLOWED_HOSTS", "agent-host, other")
    loaded = load({"server.http_port": 21, "server.host": None})
    server = loaded.settings.server
    assert (server.http_port, server.grpc_port, server.host) == (21, 12, "127.0.0.1")
    assert server.allowed_hosts == ["agent-host", "other"]
    assert loaded.settings.sql.timeout_s == 3
    assert loaded.origins["server.http_port"] == "--http-port"
    assert loaded.origins["server.grpc_port"] == "TOLLBOOK_SERVER_GRPC_PORT"
    assert loaded.origins["sql.timeout_s"] == "tollbook.toml, line 6"
    assert loaded.origins["server.host"] == "default"


def test_the_file_is_found_in_the_data_folder_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    (elsewhere / "tollbook.toml").write_text("[server]\nhttp_port = 5\n")
    assert load({"server.data_dir": elsewhere}).settings.server.http_port == 5
    monkeypatch.setenv("TOLLBOOK_CONFIG", str(elsewhere / "tollbook.toml"))
    assert load().settings.server.http_port == 5
    with pytest.raises(SettingsError, match="no such file"):
        load(config=tmp_path / "absent.toml")


def test_every_mistake_in_a_file_is_told_with_its_line_and_no_value(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[server]\n"  # 1
        'http_prot = "sk-ant-secret"\n'  # 2
        'host = "192.0.2.7"\n'  # 3
        'http_port = "sk-ant-secret"\n'  # 4
        "[sqll]\n"  # 5
        'timeout_s = "sk-ant-secret"\n'  # 6
        "[ledger]\n"  # 7
        "threads = 0 # none\n"  # 8
        "publish_interval_s = true\n"  # 9
        'server = { log_level = "loud" }\n'  # 10: a key of [ledger]
        "[billing]\n"  # 11
        "assume_unknown_access = 1\n"  # 12
    )
    with pytest.raises(SettingsError) as caught:
        load(config=path)
    sentences = caught.value.sentences
    assert len(sentences) == 8
    assert "sk-ant" not in str(caught.value)
    assert "192.0.2.7" not in str(caught.value)
    near = told(sentences, "line 2:")
    assert near == (
        f"{path}, line 2: server.http_prot is not a setting; did you mean server.http_port?"
        " [server] has: allowed_hosts, data_dir, grpc_port, host, http_port, log_level"
    )
    assert "loopback" in told(sentences, "line 3:")
    assert told(sentences, "line 4:").endswith("must be a whole number of at least 0 and at most 65535")
    assert "did you mean sql?" in told(sentences, "line 5:")
    assert told(sentences, "line 8:").endswith("ledger.threads must be a whole number of at least 1")
    assert told(sentences, "line 9:").endswith("must be a number above 0")
    assert "ledger.server is not a setting" in told(sentences, "line 10:")
    assert told(sentences, "line 12:").endswith("must be true or false")


def test_a_key_outside_its_section_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("http_port = 1\n")
    with pytest.raises(SettingsError, match=r"line 1: .*did you mean server\.http_port\?"):
        load(config=path)


def test_what_is_not_toml_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[server]\nhttp_port = sk-ant-secret\n")
    with pytest.raises(SettingsError, match="line 2") as caught:
        load(config=path)
    assert "sk-ant" not in str(caught.value)


def test_mistakes_in_the_environment_are_told_without_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLBOOK_SERVER_HTTP_PORT", "sk-ant-secret")
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith("TOLLBOOK_SERVER_HTTP_PORT: server.http_port must be a whole number")
    monkeypatch.setenv("TOLLBOOK_SERVR_HTTP_PORT", "sk-ant-secret")
    with pytest.raises(SettingsError, match=r"did you mean TOLLBOOK_SERVER_HTTP_PORT") as caught:
        load()
    assert "sk-ant" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    assert load({"server.host": host}).settings.server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.example.com", ""])
def test_anything_else_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"--host: server\.host must be a loopback address"):
        load({"server.host": host})


def test_lines_are_found_in_all_ways_to_write_a_key() -> None:
    lines = ["server.http_port = 1", "[sql]", '"timeout_s" = 2', "[limits]", "", "ledger = { threads = 1 }"]
    assert line_of(lines, ("server", "http_port")) == 1
    assert line_of(lines, ("sql",)) == 2
    assert line_of(lines, ("sql", "timeout_s")) == 3
    assert line_of(lines, ("retention", "observation_days")) is None
    assert line_of(["ledger = { threads = 1 }"], ("ledger", "threads")) == 1


def test_secrets_are_never_shown() -> None:
    assert shown(SecretStr("sk-ant-secret")) == "***"


def test_every_setting_has_a_meaning_bounds_and_a_unit_in_its_name() -> None:
    units = ("_bytes", "_s", "_days", "_hours", "_rows", "_port", "_rpcs", "_calls", "_length", "threads")
    for key, field in fields().items():
        assert field.description, key
        assert allowed_values(field), key
        if field.annotation in (int, float):
            assert key.endswith(units), key
            assert field.metadata, f"{key} has no bounds"
    assert env_name("sql.max_rows") == "TOLLBOOK_SQL_MAX_ROWS"
    assert value_of(Settings(), "sql.max_rows") == 10_000
    assert len(fields()) == sum(len(model.model_fields) for model in sections().values())


def test_the_reference_page_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "settings.md").read_text() == reference_page()
