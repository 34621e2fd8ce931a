"""Dialects: what each family of emitters means by what it says, as data (`dialects/*.toml`).

Why: which record is a model call, which repeats others, which key carries which quantity, is knowledge
that changes weekly; a new emitter should be one table and one capture. This module reads and checks the
tables and compiles them: one vocabulary of all keys and words that are looked for, and rules in order of
precedence. It refuses tables with unknown fields, roles or units, and it never decides by service name:
a rule needs a scope, an event name or an operation.

Error: `DialectError`, naming the file and the entry.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .texts import Vocabulary

SCALES: Final = {"ms": 1.0, "s": 1e3, "us": 1e-3, "ns": 1e-6, "micros": 1e-6}
LABEL_PREFIX: Final = "tollbook.label."
DOCUMENT: Final = "#"  # 'usage#details/cached': the value at details, cached in the document under 'usage'
EVENT_NAME: Final = (
    "event.name"  # an attribute beats the record's own name: some senders put a source line there
)
OPERATION: Final = "gen_ai.operation.name"

TEXT_FIELDS: Final = (
    *(
        "service",
        "instance",
        "agent",
        "session_id",
        "user_id",
        "account_id",
        "team",
        "project",
        "environment",
    ),
    *(
        "provider_name",
        "server_address",
        "url",
        "request_model",
        "response_model",
        "model_alias",
        "reservation_id",
        "region",
    ),
    *("headers", "credential_kind", "plan_hint"),
    *("operation", "response_id", "request_id", "error_type", "timestamp", "service_tier", "speed"),
)
ATTRIBUTION_FIELDS: Final = TEXT_FIELDS[:9]  # also read from the resource
TOKEN_FIELDS: Final = (
    *("input_tokens", "output_tokens", "total_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("cache_write_5m_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
    *("audio_input_tokens", "audio_output_tokens"),
)
NUMBER_FIELDS: Final = ("server_port", "http_status")
TIME_FIELDS: Final = ("ttft_ms", "duration_ms")
FLAG_FIELDS: Final = ("streaming", "batch")
MONEY_FIELDS: Final = ("reported_cost_usd",)
FIELDS: Final = (*TEXT_FIELDS, *TOKEN_FIELDS, *NUMBER_FIELDS, *TIME_FIELDS, *FLAG_FIELDS, *MONEY_FIELDS)


class DialectError(Exception):
    """A dialect table that cannot be used."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Key(_Table):
    key: str
    unit: Literal["ms", "s", "us", "ns", "micros"] | None = None
    zero_is_unknown: bool = False


_FieldKeys = dict[str, list[str | _Key]]
Convention = Literal["inclusive", "exclusive", "by_total"]
Quantity = Literal[
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
    "cost_usd",
]


class _Access(_Table):
    key: str
    values: dict[str, str] = Field(default_factory=dict)
    any: str | None = None


class _Rule(_Table):
    signal: Literal["span", "log", "metric", "any"]
    first: bool = False
    role: Literal["call", "aggregate", "outer", "metric", "ignore"]
    scope: str | None = None
    scope_prefix: str | None = None
    names: list[str] = Field(default_factory=list)
    operations: Literal["call", "aggregate", "ignore"] | None = None
    has: list[str] = Field(default_factory=list)
    has_any: list[str] = Field(default_factory=list)
    where: dict[str, list[str]] = Field(default_factory=dict)
    contains: dict[str, str] = Field(default_factory=dict)
    failed: bool | None = None
    layer: str = ""
    rank: int = Field(default=255, ge=0, le=255)
    emitter: str | None = None
    time: Literal["start", "end", "moment"] = "start"
    status: Literal["ok", "error"] | None = None
    fields: _FieldKeys = Field(default_factory=dict)
    input: Convention | None = None
    input_exclusive_providers: list[str] = Field(default_factory=list)
    output: Convention | None = None
    constants: dict[str, bool | str] = Field(default_factory=dict)
    quantity: Quantity | None = None
    quantity_key: str | None = None
    quantities: dict[str, Quantity] = Field(default_factory=dict)


class _Recognition(_Table):
    hints: list[str] = Field(default_factory=list)
    keep: list[str] = Field(default_factory=list)


class _Content(_Table):
    keys: list[str] = Field(default_factory=list)
    prefixes: list[str] = Field(default_factory=list)


class _Sampling(_Table):
    probability: list[str] = Field(default_factory=list)
    one_in: list[str] = Field(default_factory=list)


class _Dialect(_Table):
    title: str = ""
    input: Convention = "inclusive"
    output: Convention = "inclusive"
    fields: _FieldKeys = Field(default_factory=dict)
    operations: dict[Literal["call", "aggregate", "ignore"], list[str]] = Field(default_factory=dict)
    constants: dict[str, bool | str] = Field(default_factory=dict)
    emitters: dict[str, str] = Field(default_factory=dict)
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    own_ids: dict[str, str] = Field(default_factory=dict)
    access: list[_Access] = Field(default_factory=list)
    recognition: _Recognition = Field(default_factory=_Recognition)
    content: _Content = Field(default_factory=_Content)
    sampling: _Sampling = Field(default_factory=_Sampling)
    rule: list[_Rule] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Key:
    """Where a field may stand: vocabulary id, factor to the field's unit, and whether 0 means unknown."""

    id: int
    text: str
    scale: float = 1.0
    zero_is_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """A key whose value (all values, if `any`) states how the call is paid."""

    key: Key
    values: Mapping[str, str]
    any: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """A key whose text is a document, and the values wanted of it: path in it -> key it is told under."""

    key: Key
    paths: Mapping[tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Which records it takes (all conditions given must hold), what they are, and how they are read.

    `where`: key -> words of which its text or integer must be one; `contains`: (key, literal) pairs;
    `failed`: whether the span's status is an error; `layer`: tells records of one scope apart that may be
    one call.
    """

    signal: str
    first: bool
    scope: str | None
    scope_prefix: str | None
    names: tuple[int, ...]
    operations: tuple[int, ...]
    has: tuple[int, ...]
    has_any: tuple[int, ...]
    where: Mapping[int, tuple[int, ...]]
    contains: tuple[tuple[int, str], ...]
    failed: bool | None
    layer: str
    role: str
    rank: int
    emitter: str | None  # None: by scope
    time: str
    status: str | None
    input: Convention
    input_exclusive_providers: tuple[str, ...]
    output: Convention
    constants: Mapping[str, bool | str]
    values: Mapping[str, Mapping[str, str]]
    own_ids: Mapping[str, str]  # id field -> pattern of the ids that the emitter makes up itself
    fields: Mapping[str, tuple[Key, ...]]
    documents: frozenset[int]  # keys of the documents that its fields stand in
    quantity: str | None  # what the points of a metric measure, or
    quantity_key: Key | None  # the attribute that says so, and
    quantities: Mapping[str, str]  # its words


@dataclass(frozen=True, slots=True)
class Dialects:
    """All dialects, compiled. `kept`: vocabulary ids of keys that may be stored; `personal`: of keys
    that may hold e-mail addresses; `urls`: of keys that hold URLs; `content`: of keys that hold content,
    which is counted and never read; `probabilities`, `one_in`: of keys that tell of sampling.
    """

    vocabulary: Vocabulary
    rules: tuple[Rule, ...]
    access: tuple[Access, ...]
    hints: frozenset[int]
    kept: frozenset[int]
    personal: frozenset[int]
    urls: frozenset[int]
    as_text: frozenset[int]  # keys read as text even where a number stands
    documents: Mapping[int, Document]
    metrics: frozenset[int]  # names of metrics
    content: frozenset[int]
    content_prefixes: tuple[str, ...]
    probabilities: frozenset[int]
    one_in: frozenset[int]
    operation: Key
    event_name: Key
    emitters: Mapping[str, str]
    scopes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # filled as scopes are met

    def emitter(self, rule: Rule, scope: str) -> str:
        """Who wrote a record that a rule took: the rule's word, else what its scope is known as."""
        return rule.emitter or self.emitters.get(scope, scope) or "unnamed"

    def rules_for_scope(self, scope: str) -> tuple[int, ...]:
        """Indices of the rules that do not exclude a scope, in order of precedence."""
        found = self.scopes.get(scope)
        if found is None:
            found = tuple(i for i, rule in enumerate(self.rules) if _scope_fits(rule, scope))
            if len(self.scopes) < _MAX_SCOPES:
                self.scopes[scope] = found  # type: ignore[index]
        return found


_MAX_SCOPES: Final = 4096  # remembered; a sender that makes up scopes costs time, not memory


def _scope_fits(rule: Rule, scope: str) -> bool:
    if rule.scope is not None:
        return rule.scope == scope
    return scope.startswith(rule.scope_prefix or "")


@cache
def default_dialects() -> Dialects:
    """The dialects that come with tollbook, with the default attribution."""
    return load_dialects()


def load_dialects(attribution: Mapping[str, Iterable[str]] | None = None) -> Dialects:
    """Reads the tables. `attribution`: the operator's mapping, field ('team', 'project', ...) -> keys
    that come right after the `tollbook.*` key of that field.
    """
    tables = _read_tables()
    shared = tables.pop("_shared")
    common = {name: list(keys) for name, keys in shared.fields.items()}
    for name, keys in (attribution or {}).items():
        if name not in ATTRIBUTION_FIELDS:
            raise DialectError(f"attribution of {name!r}: one of {', '.join(ATTRIBUTION_FIELDS)} is meant")
        own = [key for key in common[name] if _text(key).startswith("tollbook.")]
        rest = [key for key in common[name] if key not in own]
        common[name] = [*own, *keys, *rest]
    return _Compiler(common, shared, tables).dialects()


def _read_tables() -> dict[str, _Dialect]:
    tables = {}
    folder = resources.files("ingest") / "dialects"
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            tables[entry.name.removesuffix(".toml")] = _read_table(entry.name, entry.read_text("utf-8"))
    return tables


def _read_table(name: str, text: str) -> _Dialect:
    try:
        table = _Dialect.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise DialectError(f"{name}: {error}") from error
    named = [*table.fields, *table.own_ids, *(field for rule in table.rule for field in rule.fields)]
    unknown = set(named) - set(FIELDS)
    if unknown:
        raise DialectError(f"{name}: no such field: {', '.join(sorted(unknown))}")
    for rule in table.rule:
        if rule.scope is None and not (
            rule.scope_prefix or rule.names or rule.operations or rule.has or rule.has_any or rule.where
        ):
            raise DialectError(f"{name}: a rule needs a scope, names, operations or required keys")
    return table


def _text(key: str | _Key) -> str:
    return key if isinstance(key, str) else key.key


def _base(key: str) -> str:
    """The key of the document that a value stands in ('usage#input' -> 'usage'), or the key itself."""
    return key.partition(DOCUMENT)[0]


class _Compiler:
    """Collects the vocabulary of all tables, then turns their texts into ids."""

    def __init__(self, common: _FieldKeys, shared: _Dialect, tables: Mapping[str, _Dialect]) -> None:
        self.common, self.shared, self.tables = common, shared, tables
        self.vocabulary = Vocabulary(self._words())

    def _words(self) -> Iterator[str]:
        yield from (OPERATION, EVENT_NAME)
        yield from self._kept_keys()
        yield from self.shared.recognition.hints
        yield from (
            *self.shared.content.keys,
            *self.shared.sampling.probability,
            *self.shared.sampling.one_in,
        )
        for table in (self.shared, *self.tables.values()):
            yield from (word for words in table.operations.values() for word in words)
            for rule in table.rule:
                yield from (*rule.names, *rule.has, *rule.has_any, *rule.where, *rule.contains)
                yield from (word for words in rule.where.values() for word in words)
                yield from [rule.quantity_key] if rule.quantity_key else []
        yield from map(_base, self._kept_keys())

    def _kept_keys(self) -> Iterator[str]:
        yield from (OPERATION, EVENT_NAME)
        for table in (self.shared, *self.tables.values()):
            yield from table.recognition.keep
        for keys in [self.common, *(keys for table in self.tables.values() for keys in _all_fields(table))]:
            yield from (_text(key) for listed in keys.values() for key in listed)
        for table in (self.shared, *self.tables.values()):
            yield from (access.key for access in table.access)
            yield from (key for rule in table.rule for key in rule.where)
            yield from (rule.quantity_key for rule in table.rule if rule.quantity_key)

    def _documents(self) -> dict[int, Document]:
        paths: dict[str, dict[tuple[str, ...], str]] = {}
        for key in self._kept_keys():
            base, is_path, path = key.partition(DOCUMENT)
            if is_path:
                paths.setdefault(base, {})[tuple(path.split("/")) if path else ()] = key
        return {self.vocabulary.ids[base]: Document(self._key(base), found) for base, found in paths.items()}

    def dialects(self) -> Dialects:
        tables = (*self.tables.values(), self.shared)
        rules = [self._rule(rule, table) for table in tables for rule in table.rule]
        kept = set(self._kept_keys())
        for rule in (rule for table in tables for rule in table.rule):
            if unread := {*rule.has, *rule.has_any} - kept:
                raise DialectError(f"a rule needs keys that are not kept: {', '.join(sorted(unread))}")
        access = [entry for table in (self.shared, *self.tables.values()) for entry in table.access]
        return Dialects(
            vocabulary=self.vocabulary,
            rules=tuple(sorted(rules, key=_generality)),
            access=tuple(Access(self._key(a.key), a.values, a.any) for a in access),
            hints=self._ids(self.shared.recognition.hints),
            kept=self._ids(self._kept_keys()),
            personal=self._standing(rules, ATTRIBUTION_FIELDS),
            urls=self._standing(rules, ("url", "server_address")),
            as_text=self._standing(rules, TEXT_FIELDS),
            documents=MappingProxyType(self._documents()),
            metrics=self._ids(
                name for t in tables for r in t.rule if r.signal == "metric" for name in r.names
            ),
            content=self._ids(self.shared.content.keys),
            content_prefixes=tuple(self.shared.content.prefixes),
            probabilities=self._ids(self.shared.sampling.probability),
            one_in=self._ids(self.shared.sampling.one_in),
            operation=self._key(OPERATION),
            event_name=self._key(EVENT_NAME),
            emitters={
                scope: name for table in self.tables.values() for scope, name in table.emitters.items()
            },
        )

    def _standing(self, rules: Iterable[Rule], names: Iterable[str]) -> frozenset[int]:
        """The keys under which fields may stand, in any dialect."""
        fields = [(name, rule) for name in names for rule in rules]
        return frozenset(key.id for name, rule in fields for key in rule.fields.get(name, ()))

    def _ids(self, words: Iterable[str]) -> frozenset[int]:
        return frozenset(self.vocabulary.ids[word] for word in words)

    def _key(self, key: str | _Key) -> Key:
        told = _Key(key=key) if isinstance(key, str) else key
        scale = SCALES[told.unit] if told.unit else 1.0
        return Key(self.vocabulary.ids[told.key], told.key, scale, told.zero_is_unknown)

    def _rule(self, rule: _Rule, table: _Dialect) -> Rule:
        fields = {**self.common, **table.fields, **rule.fields}
        words = {self.vocabulary.ids[key]: tuple(sorted(self._ids(rule.where[key]))) for key in rule.where}
        return Rule(
            signal=rule.signal,
            first=rule.first,
            scope=rule.scope,
            scope_prefix=rule.scope_prefix,
            names=tuple(sorted(self._ids(rule.names))),
            operations=tuple(sorted(self._ids(table.operations[rule.operations] if rule.operations else []))),
            has=tuple(sorted(self._ids(rule.has))),
            has_any=tuple(sorted(self._ids(rule.has_any))),
            where=MappingProxyType(words),
            contains=tuple((self.vocabulary.ids[key], text) for key, text in rule.contains.items()),
            failed=rule.failed,
            layer=rule.layer,
            role=rule.role,
            rank=rule.rank,
            emitter=rule.emitter,
            time=rule.time,
            status=rule.status,
            input=rule.input or table.input,
            input_exclusive_providers=tuple(name.lower() for name in rule.input_exclusive_providers),
            output=rule.output or table.output,
            constants=MappingProxyType({**table.constants, **rule.constants}),
            values=MappingProxyType(dict(table.values)),
            own_ids=MappingProxyType(dict(table.own_ids)),
            fields=MappingProxyType({name: tuple(map(self._key, keys)) for name, keys in fields.items()}),
            documents=self._ids(
                _base(_text(key)) for keys in fields.values() for key in keys if DOCUMENT in _text(key)
            ),
            quantity=rule.quantity,
            quantity_key=self._key(rule.quantity_key) if rule.quantity_key else None,
            quantities=MappingProxyType(dict(rule.quantities)),
        )


def _all_fields(table: _Dialect) -> Iterator[_FieldKeys]:
    yield table.fields
    yield from (rule.fields for rule in table.rule)


def _generality(rule: Rule) -> int:
    if rule.first:
        return -1
    return 0 if rule.scope is not None else 1 if rule.scope_prefix is not None else 2
