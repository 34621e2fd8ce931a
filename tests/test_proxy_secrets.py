"""No key survives in a text, and no call is sent where keys must not go."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.redact import REDACTED, prefixes, redact, without_internal_urls
from proxy.url_safety import UnsafeUrl, check_addresses, checked_url

CATALOG = Path(__file__).parent.parent / "catalog" / "providers"
KEY_TAIL = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0u1V2w3X4"


def catalogue_prefixes() -> set[str]:
    files = (tomllib.loads(file.read_text()) for file in CATALOG.glob("*.toml"))
    return {credential["prefix"] for file in files for credential in file.get("credentials", ())}


@pytest.mark.parametrize(
    "prefix", sorted({*prefixes(), *catalogue_prefixes(), "sk-ant-oat01-", "sk-admin-", "eyJ"})
)
def test_every_known_key_shape_goes_wherever_it_stands(prefix: str) -> None:
    key = prefix + KEY_TAIL
    for text in (
        "{}",
        "bad key {} rejected",
        '{{"a": "{}"}}',
        "({})",
        "x={}, y",
        "https://h/p?q={}&r=1",
        "key:{}",
    ):
        found = redact(text.format(key))
        assert KEY_TAIL[:12] not in found and REDACTED in found, found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cookie: a=b; c=d\r\nHost: h", f"Cookie: {REDACTED}\r\nHost: h"),
        ('{"apiKey": "cut off he', f'{{"apiKey": "{REDACTED}"'),
        ("https://me:secret@api.example.com/v1", f"https://{REDACTED}@api.example.com/v1"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----.", f"{REDACTED}."),
        ("Basic dXNlcjpwYXNz", f"Basic {REDACTED}"),
        ("token=abc&x=1", f"token={REDACTED}&x=1"),
        ('{"key": "opaque value", "keys": 3}', f'{{"key": "{REDACTED}", "keys": 3}}'),
    ],
)
def test_secrets_by_name(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Bearer%20sk-{}",
        "Bearer%20{}",
        "u?a=1&api_key%3D{}",
        "u?api_key%253D{}",
        "%22x-api-key%22%3A%22{}%22",
        "%73k-ant-api03-{}",
        "u?a=1\\u0026api_key\\u003d{}",
        "bad key:\\nsk-ant-{} rejected",
        '{{"text": "x\\tgsk_{}"}}',
        "api key {}",
        "Invalid API key: {}",
        "Incorrect API key provided: {}. You can find yours elsewhere",
        "the API key '{}' is not valid",
        "--api-key {}",
        "the password is {}",
        "invalid token {}",
        "key: {}",
        "HF_TOKEN={}",
        "Ocp-Apim-Subscription-Key: {}",
        "Authorization: ApiKey {}",
        "[(b'authorization', b'Bearer {}'), (b'accept', b'*/*')]",
        "https://h/p?sig={}&x=1",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n{}\n-----END PGP PRIVATE KEY BLOCK-----",
    ],
)
def test_secrets_go_from_sentences_escapes_and_what_is_logged_of_headers(text: str) -> None:
    found = redact(text.format(KEY_TAIL))
    assert KEY_TAIL[:12] not in found and REDACTED in found, found
    assert redact(found) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key provided: sk-ab**cd. You can", f"key provided: {REDACTED}. You can"),
        ("key provided: sk-proj-********wxyz.", f"key provided: {REDACTED}."),
        ("API key ab12****yz is wrong", f"API key {REDACTED} is wrong"),
        ("token: ****wxyz", f"token: {REDACTED}"),
        ("sk-ant-...x9Zq expired", f"{REDACTED} expired"),
        ("key 123e4567-e89b-42d3-a456-426614174000", f"key {REDACTED}"),
        ("api key hunter22 is wrong", f"api key {REDACTED} is wrong"),
        ("api_key%3Dopaque&x=%20y", f"api_key={REDACTED}&x= y"),
    ],
)
def test_secrets_masked_in_part_or_told_in_prose(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "API key is invalid",
        "Invalid API key: please check it",
        "An API key is required; keys begin with sk-ant-...",
        "unknown key: response_format",
        "the key 'model' is missing",
        "key **name** is required",
        "missing fields: 'api_key', 'model'",
        "token limit exceeded: 128000",
        "Unexpected token < in JSON at position 0",
        "Unexpected token ...args",
        "MAX_TOKEN=4096",
        "next_page_token=abc",
        "the password is base64-encoded",
        "Your API key expired on 2026-11-22",
        "API key used 1000000 tokens",
        "unsupported key: claude-sonnet-4-5-20250929",
        "see https://h.example/a%20b?x=%2Fy and 100%25",
        "a bearer token is needed",
        "Basic information",
        "risk-assessment-of-things",
        "the api-gateway-service answered",
        "monkey:banana",
        "expected key: value",
        "user_message_content_of_the_first_turn",
        "max_tokens=4096 is too many",
        "see https://platform.openai.com/account/api-keys",
        "claude-sonnet-4-5-20250929",
        "req_011CX9hnQEYspvNvw17uPeE3",
        "chatcmpl-9f8e7d6c5b4a39281706f5e4d3c2b1a0",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


_PIECES = st.sampled_from(
    [
        "sk-abcdefghijk",
        "Bearer ",
        "key=",
        '"',
        "\\",
        "api_key",
        ":",
        " ",
        "[REDACTED]",
        "x",
        "@",
        "https://",
        "%20",
        "%3D",
        "api key ",
        "hunter22",
        "**",
        "eyJhbGciOiJIU",
        "\n",
    ]
)


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=8).map("".join))
def test_to_redact_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
    assert (
        "sk-abcdefghijk" not in once.replace("xsk-abcdefghijk", "").replace("Usk-abcdefghijk", "")
        or "k" in text
    )


def test_urls_of_our_side_are_hidden_and_others_stay() -> None:
    text = (
        "see https://docs.z.ai/api (http://localhost:11434/v1), http://0x7f.1/ and http://vllm.prod.svc:80."
    )
    hidden = without_internal_urls(text)
    assert hidden.startswith("see https://docs.z.ai/api ([internal address]")
    assert "11434" not in hidden and "0x7f" not in hidden and "vllm" not in hidden


def refused(url: str, *addresses: str, allow_private: bool = False) -> str | None:
    try:
        checked = checked_url(url, allow_private=allow_private)
        if checked.address is None:
            check_addresses(checked, addresses, allow_private=allow_private)
    except UnsafeUrl as unsafe:
        return unsafe.code
    return None


PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    ("url", "addresses", "code"),
    [
        ("https://api.example.com/v1", [PUBLIC], None),
        ("https://api.example.com", [PUBLIC, "10.0.0.1"], "private_address"),
        ("https://api.example.com", [], "unresolved"),
        ("https://api.example.com", ["169.254.169.254"], "metadata"),
        ("http://api.example.com", [PUBLIC], "plain_http"),
        ("https://user:pw@api.example.com", [PUBLIC], "userinfo"),
        ("https://api.example.com\\@evil.example", [PUBLIC], "userinfo"),
        ("ftp://api.example.com", [], "scheme"),
        ("file:///etc/passwd", [], "scheme"),
        ("//api.example.com", [], "invalid_url"),
        ("https://", [], "invalid_url"),
        ("https://a b", [], "invalid_url"),
        ("https://127%2e0.0.1", [], "invalid_url"),
        ("https://h:99999", [], "invalid_url"),
        ("https://localhost:8080", [], "private_address"),
        ("https://printer.local", [], "private_address"),
        ("https://2130706433", [], "private_address"),
        ("https://0x7f.1", [], "private_address"),
        ("https://0177.0.0.01", [], "private_address"),
        ("https://127.1", [], "private_address"),
        ("https://127.0.0.1.", [], "private_address"),
        ("https://[::]", [], "private_address"),
        ("https://[fe80::1]", [], "private_address"),
        ("https://[::ffff:127.0.0.1]", [], "private_address"),
        ("https://[::7f00:1]", [], "private_address"),
        ("https://[64:ff9b::7f00:1]", [], "private_address"),
        ("https://[2002:7f00:1::]", [], "private_address"),
        ("https://[64:ff9b::a9fe:a9fe]", [], "metadata"),
        ("https://2852039166", [], "metadata"),
        ("https://metadata.google.internal/computeMetadata", [], "metadata"),
        ("https://224.0.0.1", [], "private_address"),
        ("https://[64:ff9b:1::808:808]", [], "private_address"),
        ("https://[::ffff:0:127.0.0.1]", [], "private_address"),
        ("https://[3fff::1]", [], "private_address"),
        ("https://[fec0::1]", [], "private_address"),
        ("https://api.example.com", ["::ffff:10.0.0.1"], "private_address"),
        ("https://api.example.com", ["64:ff9b:1::a9fe:a9fe"], "metadata"),
        ("https://METADATA.google.internal.", [], "metadata"),
        ("https://api.example.com\n.evil.example", [], "invalid_url"),
        ("https://api.example.com\t/v1", [], "invalid_url"),
        ("https://api.example.com:0", [], "invalid_url"),
        ("https://[2606:2800:220:1::1]", [], None),
    ],
)
def test_where_calls_may_go(url: str, addresses: list[str], code: str | None) -> None:
    assert refused(url, *addresses) == code


@pytest.mark.parametrize(
    ("url", "addresses", "code"),
    [
        ("http://127.0.0.1:11434/v1", [], None),
        ("http://llamacpp:8080/v1", ["172.17.0.3"], None),
        ("http://box.local", [], None),
        ("http://8.8.8.8", [], "plain_http"),
        ("http://mixed.example.com", ["10.0.0.1", PUBLIC], "plain_http"),
        ("https://api.example.com", [PUBLIC], None),
        ("http://169.254.169.254", [], "metadata"),
        ("http://[fd00:ec2::254]", [], "metadata"),
        ("http://169.254.1.2", [], None),
        ("http://box.local", ["fe80::1%eth0"], None),
    ],
)
def test_private_networks_are_allowed_where_they_are_meant(
    url: str, addresses: list[str], code: str | None
) -> None:
    assert refused(url, *addresses, allow_private=True) == code
