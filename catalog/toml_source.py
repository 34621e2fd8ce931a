"""Reads reviewed TOML into closed models, and says of every fault in which file and on which line it is.

`tomllib` forgets where a key stood, so the text is scanned once more when something is wrong. The scan only
looks for keys, table headers and the elements of lists; what the file means is `tomllib`'s to say. Values are
never repeated: a key that someone pasted by mistake must not come back in an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Data", "Place", "TomlText", "read_toml"]

Place = Sequence[int | str]
"""Keys and list positions that lead to a value, as in `("price", 2, "row", 0, "input")`."""

_HEADER = re.compile(r"^\[(\[)?\s*([^\]]+?)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(
    r"""^((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_MARK = re.compile(r'''"""|\'\'\'|"(?:\\.|[^"\\])*"|'[^']*'|#.*|[\[\]{},]''')


class Data(BaseModel):
    """Base of everything read from TOML: closed, strict, frozen, and silent about values in its errors."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


T = TypeVar("T", bound=Data)


def read_toml(path: Path, shape: type[T], problems: list[str]) -> T | None:
    """Read one TOML file into `shape`; None after adding one `file:line: key: what` for each fault.

    Numbers with a point become Decimal, never float.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return shape.model_validate(tomllib.loads(text, parse_float=Decimal))
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{_at(path, _syntax_line(error))}: not TOML: {error}")
    except ValidationError as error:
        lines = TomlText(text)
        for issue in error.errors():
            where = f"{_at(path, lines.line(issue['loc']))}: {dotted(issue['loc'])}"
            problems.append(f"{where}: {issue['msg'].removeprefix('Value error, ')}")
    except UnicodeDecodeError:
        problems.append(f"{path.name}: not UTF-8")
    except OSError as error:
        problems.append(f"{path.name}: cannot be read: {error.strerror}")
    return None


def _at(path: Path, line: int) -> str:
    return f"{path.name}:{line}"


def _syntax_line(error: tomllib.TOMLDecodeError) -> int:
    found = re.search(r"line (\d+)", str(error))
    return int(found[1]) if found else 1


def dotted(place: Place) -> str:
    """Write a place as a person would: `price[2].row[0].input`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).lstrip(".") or "file"


class TomlText:
    """The lines on which a TOML text sets its keys."""

    def __init__(self, text: str) -> None:
        self._lines = _Scan().read(text)

    def line(self, place: Place) -> int:
        """Give the line (from 1) of the value at `place`, or of the nearest thing around it."""
        for end in range(len(place), 0, -1):
            found = self._lines.get(tuple(place[:end]))
            if found is not None:
                return found
        return 1


@dataclass
class _Scan:
    """One pass over a text: the table it is in, the list it is in, and the lines found so far."""

    lines: dict[tuple[int | str, ...], int] = field(default_factory=dict)
    tables: dict[tuple[int | str, ...], int] = field(default_factory=dict)
    table: tuple[int | str, ...] = ()
    key: tuple[int | str, ...] = ()
    depth: int = 0
    element: int = 0
    fresh: bool = False
    quotes: str = ""

    def read(self, text: str) -> dict[tuple[int | str, ...], int]:
        for number, line in enumerate(text.splitlines(), start=1):
            self._line(line.strip(), number)
        return self.lines

    def _line(self, line: str, number: int) -> None:
        if self.quotes or self.depth:
            self._value(line, number)
        elif header := _HEADER.match(line):
            self._enter(header[2], number, many=bool(header[1]))
        elif key := _KEY.match(line):
            self.key = (*self.table, *_parts(key[1]))
            self.lines[self.key] = number
            self._value(line[key.end() :], number)

    def _enter(self, name: str, number: int, *, many: bool) -> None:
        """Go into the table that a header names; parts of its name that are lists mean their last element."""
        place: tuple[int | str, ...] = ()
        *around, last = _parts(name)
        for part in around:
            place = (*place, part)
            if place in self.tables:
                place = (*place, self.tables[place])
        place = (*place, last)
        if many:
            self.tables[place] = self.tables.get(place, -1) + 1
            self.lines.setdefault(place, number)
            place = (*place, self.tables[place])
        self.table = place
        self.lines[place] = number

    def _value(self, text: str, number: int) -> None:
        """Follow brackets and strings, noting the line on which each element of an outermost list begins."""
        self._note_element(text, number)
        for mark in _MARK.findall(text):
            if self.quotes:
                self.quotes = "" if mark == self.quotes else self.quotes
            elif mark in ('"""', "'''"):
                self.quotes = mark
            elif mark in "[{":
                self._open(mark)
            elif mark in "]}":
                self.depth -= 1
            elif mark == "," and self.depth == 1:
                self.element += 1
                self.fresh = True
            elif not mark.startswith("#"):
                continue
            if self.depth and not mark.startswith("#"):
                self._note_element(text.rpartition(mark)[2], number)

    def _open(self, mark: str) -> None:
        self.depth += 1
        if self.depth == 1 and mark == "[":
            self.element, self.fresh = 0, True

    def _note_element(self, rest: str, number: int) -> None:
        if self.depth >= 1 and self.fresh and rest.strip(" ,\t") and not rest.strip().startswith("#"):
            self.lines.setdefault((*self.key, self.element), number)
            self.fresh = False


def _parts(name: str) -> list[str]:
    return [part.strip("\"'") for part in _KEY_PART.findall(name)]
