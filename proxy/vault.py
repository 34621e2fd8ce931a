"""Our own keys to providers: encrypted on disk, decrypted in memory for the header that shows them.

One file holds the entries, another the key that opens them; both are for this user's eyes only. An entry may
name an environment variable in place of a key. The file is read again when it has changed, so that a key
added on the command line serves at once. What is never here: the callers' own keys.

    VaultError   the vault cannot be read or written, or holds no such entry
"""

# ruff: noqa: PLC0415  # cryptography is heavy, and most houses hold no keys

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from proxy.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["DEFAULT_ACCOUNT", "Entry", "Vault", "VaultError"]

DEFAULT_ACCOUNT: Final = "default"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_NO_FILE: Final = (0, 0)


class VaultError(Exception):
    """The vault cannot be used as asked; the message is for people and holds no key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key: whose, under which access, and where it is (`env`, or `sealed`). `kind` is the prefix that
    tells its kind, if one does.
    """

    provider: str
    access: str
    account: str = DEFAULT_ACCOUNT
    kind: str | None = None
    env: str | None = None
    sealed: str | None = None
    added_at: str = ""

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells entries apart."""
        return self.provider, self.access, self.account


class Vault:
    """The entries in `directory`/vault.json."""

    def __init__(self, directory: Path, *, key_file: Path | None = None) -> None:
        self._path = directory / "vault.json"
        self._place = str(self._path)  # with every call a Path would cost more than what is asked of it
        self._key_file = key_file or directory / "vault.key"
        self._stamp: tuple[int, int] | None = None
        self._version = 0
        self._entries: tuple[Entry, ...] = ()
        self._opened: dict[Entry, Secret] = {}

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order they were added. Raises VaultError."""
        try:
            told = os.stat(self._place)  # noqa: PTH116
        except FileNotFoundError:
            stamp = _NO_FILE
        else:
            stamp = (told.st_mtime_ns, told.st_ino)
        if stamp != self._stamp:
            self._entries = () if stamp is _NO_FILE else tuple(self._read())
            self._stamp, self._opened = stamp, {}
            self._version += 1
        return self._entries

    def version(self) -> int:
        """Another number whenever the entries may have changed. Raises VaultError."""
        self.entries()
        return self._version

    def _read(self) -> Iterable[Entry]:
        try:
            return [Entry(**entry) for entry in orjson.loads(self._path.read_bytes())["entries"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VaultError(f"{self._path}: cannot be read ({type(error).__name__})") from None

    def find(self, provider: str, access: str | None = None, account: str | None = None) -> Entry | None:
        """The first entry of a provider that fits; None where there is none."""
        for entry in self.entries():
            fits = access in (None, entry.access) and account in (None, entry.account)
            if entry.provider == provider and fits:
                return entry
        return None

    def reveal(self, entry: Entry) -> Secret:
        """The key of an entry. Raises VaultError."""
        if entry.env is not None:
            value = os.environ.get(entry.env, "").strip()
            if not value:
                raise VaultError(f"the environment variable {entry.env} is not set")
            return Secret(value)
        if entry not in self._opened:
            self._opened[entry] = self._open(entry)
        return self._opened[entry]

    def _open(self, entry: Entry) -> Secret:
        from cryptography.exceptions import InvalidTag

        raw = base64.b64decode(entry.sealed or "")
        try:
            text = _cipher(self._key()).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _label(entry))
        except (InvalidTag, ValueError):
            raise VaultError(
                f"the key of {entry.provider} was sealed with another {self._key_file}"
            ) from None
        return Secret(text.decode())

    def add(self, entry: Entry, key: Secret | None = None) -> None:
        """Keep an entry in the place of one of the same name; `key` is sealed. Raises VaultError."""
        if key is not None:
            nonce = os.urandom(_NONCE_BYTES)
            cipher = _cipher(self._key(make=True))
            sealed = nonce + cipher.encrypt(nonce, key.reveal().encode(), _label(entry))
            entry = replace(entry, sealed=base64.b64encode(sealed).decode())
        self._write([*(each for each in self.entries() if each.name != entry.name), entry])

    def remove(self, provider: str, *, access: str | None = None, account: str | None = None) -> int:
        """Forget the entries that fit; how many."""
        kept = [
            each
            for each in self.entries()
            if each.provider != provider
            or access not in (None, each.access)
            or account not in (None, each.account)
        ]
        gone = len(self.entries()) - len(kept)
        if gone:
            self._write(kept)
        return gone

    def _write(self, entries: Iterable[Entry]) -> None:
        body = orjson.dumps({"entries": [asdict(entry) for entry in entries]}, option=orjson.OPT_INDENT_2)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self._path.with_suffix(".new")
        _write_private(aside, body)
        aside.replace(self._path)
        self._stamp = None

    def _key(self, *, make: bool = False) -> bytes:
        try:
            if self._key_file.stat().st_mode & 0o077:
                raise VaultError(f"{self._key_file}: others may read it; chmod 600 it")
            return base64.b64decode(self._key_file.read_bytes())
        except FileNotFoundError:
            if not make:
                raise VaultError(f"{self._key_file} is missing: it opens the vault; restore it") from None
        if self.entries() and any(entry.sealed for entry in self.entries()):
            raise VaultError(f"{self._key_file} is missing: it opens the vault; restore it")
        key = os.urandom(_KEY_BYTES)
        self._key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(self._key_file, base64.b64encode(key))
        return key


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _label(entry: Entry) -> bytes:
    """What a key is sealed for: a ciphertext moved to another entry does not open."""
    return "\n".join(entry.name).encode()


def _write_private(path: Path, body: bytes) -> None:
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, body)
        os.fsync(file)
    finally:
        os.close(file)
