"""Where settings come from, and what is said of those that cannot be used.

Flags beat the environment (`TOLLBOOK_<SECTION>_<NAME>`), the environment beats the file (`tollbook.toml`),
the file beats the defaults. Everything is strict: an unknown key or a wrong type stops the start, and the
sentence names the place, the key, what is allowed and the nearest spelling. No message ever holds a value,
since people paste keys into the wrong line.

    SettingsError   settings that cannot be used; one sentence for each place
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from billing.budget import Budget
from tollbook.errors import TollbookError
from tollbook.settings import ENV_PREFIX, Section, Settings, default_data_dir, env_name, fields, sections
from tollbook.settings_budgets import KEY as BUDGETS
from tollbook.settings_budgets import read_budgets
from tollbook.settings_page import allowed_values

OTHER_ENVIRONMENT = {"TOLLBOOK_CONFIG", "TOLLBOOK_URL", "TOLLBOOK_GRPC"}  # read by the command line
FILE_NAME = "tollbook.toml"

Tree = dict[str, Any]


class SettingsError(TollbookError):
    """Settings that cannot be used; `sentences` holds one for each place."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, for every `section.name`, where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load(flags: Mapping[str, Any] | None = None, *, config: Path | None = None) -> Loaded:
    """Read all layers. `flags` is keyed `section.name`, None meaning not given. Raises SettingsError."""
    told = _nest({key: value for key, value in (flags or {}).items() if value is not None})
    environment = _environment()
    path = _file(config, told, environment)
    layers = [
        _Layer("flag", told, lines=None),
        _Layer("environment", environment, lines=None),
        *([_read_file(path)] if path else []),
    ]
    budgets, faults = _budgets(layers[-1])
    problems = [sentence for layer in layers for sentence in layer.problems()] + faults
    if problems:
        raise SettingsError(*problems)
    return _merged(layers, budgets)


def _budgets(file: _Layer) -> tuple[list[Budget], list[str]]:
    """The operator's budgets; only a file can hold such."""
    if file.lines is None or file.tree.pop(BUDGETS, None) is None:
        return [], []
    return read_budgets("\n".join(file.lines), file=file.kind)


def _merged(layers: list[_Layer], budgets: list[Budget]) -> Loaded:
    merged: Tree = {}
    origins = dict.fromkeys(fields(), "default")
    for layer in reversed(layers):
        for section, values in layer.tree.items():
            merged.setdefault(section, {}).update(values)
            origins.update({f"{section}.{name}": layer.origin(section, name) for name in values})
    return Loaded(Settings(**merged, budgets=budgets), origins)


# --- the layers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str  # 'flag', 'environment', or the file's name
    tree: Tree
    lines: list[str] | None

    def problems(self) -> list[str]:
        """One sentence for each value that cannot be used."""
        known = sections()
        told: list[str] = []
        for name, values in self.tree.items():
            if name not in known:
                told.append(f"{self._place((name,))}: {_unknown((name,))}")
            elif not isinstance(values, dict):
                told.append(f"{self._place((name,))}: {name} must be a table of settings")
            else:
                told += self._section_problems(name, known[name], values)
        return told

    def _section_problems(self, name: str, model: type[Section], values: Tree) -> list[str]:
        try:
            if self.lines is None:
                model.model_validate(values)
            else:  # TOML has types, so a number in quotes is a mistake worth telling
                model.model_validate_json(orjson.dumps(values, default=str), strict=True)
        except ValidationError as error:
            errors = error.errors(include_input=False, include_url=False)
            return [
                self._sentence((name, *each["loc"]), each["type"], message=each["msg"]) for each in errors
            ]
        return []

    def origin(self, section: str, name: str) -> str:
        """Where this layer has the value from, for people."""
        if self.kind == "flag":
            return f"--{name.replace('_', '-')}"
        if self.kind == "environment":
            return env_name(f"{section}.{name}")
        line = line_of(self.lines or [], (section, name))
        return f"{self.kind}, line {line}" if line else self.kind

    def _sentence(self, loc: tuple[int | str, ...], kind: str, *, message: str) -> str:
        path = tuple(str(part) for part in loc[:2])
        place = self._place(path)
        if kind == "extra_forbidden":
            return f"{place}: {_unknown(path)}"
        key = ".".join(path)
        if kind == "value_error":
            return f"{place}: {key} {message.removeprefix('Value error, ')}"
        return f"{place}: {key} must be {allowed_values(fields()[key])}"

    def _place(self, path: tuple[str, ...]) -> str:
        if len(path) == 2 and self.kind in ("flag", "environment"):
            return self.origin(*path)
        line = line_of(self.lines or [], path)
        return f"{self.kind}, line {line}" if line else self.kind


def _environment() -> Tree:
    known = {env_name(key) for key in fields()} | OTHER_ENVIRONMENT
    told = {name.upper() for name in os.environ if name.upper().startswith(ENV_PREFIX)}
    unknown = sorted(told - known)
    if unknown:
        sentences = (f"environment: {name} is not a setting{_nearest(name, known)}" for name in unknown)
        raise SettingsError(*sentences)
    return dict(EnvSettingsSource(Settings)())


def _file(config: Path | None, flags: Tree, environment: Tree) -> Path | None:
    named = config or (Path(os.environ["TOLLBOOK_CONFIG"]) if "TOLLBOOK_CONFIG" in os.environ else None)
    if named:
        if not named.is_file():
            raise SettingsError(f"{named}: there is no such file")
        return named
    told = flags.get("server", {}).get("data_dir") or environment.get("server", {}).get("data_dir")
    data_dir = Path(told) if told else default_data_dir()
    return next((path for path in (Path(FILE_NAME), data_dir / FILE_NAME) if path.is_file()), None)


def _read_file(path: Path) -> _Layer:
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({type(error).__name__})") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None
    return _Layer(str(path), tree, lines=text.splitlines())


def line_of(lines: list[str], path: tuple[str, ...]) -> int | None:
    """The line (from 1) on which `path` is set in a TOML file, or its table begins."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if text.startswith("["):
            table = _parts(text.strip("[]"))
            found = table
        elif "=" in text:
            found = (*table, *_parts(text.split("=")[0]))
        else:
            continue
        if found == path or (len(found) < len(path) and "{" in text and found == path[: len(found)]):
            return number
    return None


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in key.strip().split("."))


def _nest(flat: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for key, value in flat.items():
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = value
    return tree


def _unknown(path: tuple[str, ...]) -> str:
    key = ".".join(path)
    if len(path) == 1:
        near = _nearest(key, [*sections(), *fields()])
        return f"{key} is not a section{near} There are: {_list(sections())}"
    names = sections()[path[0]].model_fields
    return f"{key} is not a setting{_nearest(key, fields())} [{path[0]}] has: {_list(names)}"


def _nearest(word: str, known: Iterable[str]) -> str:
    choices = [*known, BUDGETS]
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    last = [key for key in choices if key.rpartition(".")[2] == word]
    return f"; did you mean {(last or near)[0]}?" if last or near else "."


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
