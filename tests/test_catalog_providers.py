"""The reviewed TOML: wrong facts are refused with file, key and what is allowed; values are never printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from catalog.errors import ProviderDataError
from catalog.provider_book import DATA, load_book

GOOD = 'id = "acme"\nname = "Acme"\nsource = "docs.acme.example"\nchecked = 2026-11-22\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shutil.copy(DATA / "labs.toml", tmp_path / "labs.toml")
    shutil.copytree(DATA / "providers", tmp_path / "providers")
    return tmp_path


def test_shipped_data_is_valid_and_every_fact_has_a_source() -> None:
    book = load_book()
    assert len(book.providers) >= 190
    assert all(p.source and p.checked for p in book.providers.values())
    assert book.names["aws.bedrock"] == "amazon-bedrock" and book.names["x-ai"] == "xai"


def test_a_new_provider_is_one_file_and_another_version(data: Path) -> None:
    before = load_book(data)
    (data / "providers" / "acme.toml").write_text(GOOD + '[[hosts]]\nhost = "api.acme.example"\n')
    after = load_book(data)
    assert "acme" in after.providers and after.sha256 != before.sha256


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("acme", "acme2"), r"acme\.toml: id: must be the file's name, acme"),
        (GOOD.replace('source = "docs.acme.example"\n', ""), r"acme\.toml: source: Field required"),
        (GOOD + 'acess = "payg"\n', r"acme\.toml: acess: Extra inputs are not permitted"),
        (GOOD + 'access = "paid"\n', r"acme\.toml: access: Input should be 'payg', 'subscription'"),
        (
            GOOD + 'aliases = ["az.ai.openai"]\n',
            r"azure\.toml: aliases: az.ai.openai is already claimed in acme",
        ),
        (
            GOOD + '[[hosts]]\nhost = "api.groq.com"\n',
            r"groq\.toml: hosts: api.groq.com is already claimed in acme",
        ),
        (
            GOOD + '[[hosts]]\nhost = "a.example"\npath = "v1/"\n',
            r"acme\.toml: hosts\[0\]\.path: .*starts with /",
        ),
        (
            GOOD + "[[grammars]]\nregex = '('\n",
            r"acme\.toml: grammars\[0\]\.regex: .*not a regular expression",
        ),
        (GOOD + "access payg\n", r"acme\.toml: not TOML: .*line 5"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(data: Path, text: str, told: str) -> None:
    (data / "providers" / "acme.toml").write_text(text)
    with pytest.raises(ProviderDataError, match=told):
        load_book(data)


def test_every_wrong_place_is_told_at_once_and_no_value(data: Path) -> None:
    pasted = "sk-" + "p" * 20
    (data / "providers" / "acme.toml").write_text(GOOD + f'access = "{pasted}"\nplan = 3\n')
    with pytest.raises(ProviderDataError) as caught:
        load_book(data)
    assert str(caught.value).count("acme.toml") == 2 and pasted not in str(caught.value)


def test_a_lab_names_providers_that_exist(data: Path) -> None:
    (data / "providers" / "cursor.toml").unlink()
    with pytest.raises(ProviderDataError, match=r"labs\.toml: lab cursor: providers: cursor has no file"):
        load_book(data)
