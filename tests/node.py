"""JavaScript packages for tests: installed by npm at the versions that their package.json names, once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["JS", "installed"]

JS = Path(__file__).parent / "js"
_OFFLINE = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ENETUNREACH",
    "ETIMEDOUT",
    "ERR_SOCKET_TIMEOUT",
)
_INSTALL = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")


def installed(name: str, *, timeout_s: float = 300) -> Path:
    """The folder that holds the packages of `tests/js/NAME`, in a cache that outlives the test run.

    The test is skipped, with the reason, where there is no Node or no way to npm's registry.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not here")
    package = (JS / name / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "tollbook-tests" / f"{name}-{hashlib.sha256(package).hexdigest()[:12]}"
    if (folder / "installed").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_bytes(package)
    done = subprocess.run(_INSTALL, cwd=folder, capture_output=True, timeout=timeout_s, check=False)
    errors = done.stderr.decode()
    if done.returncode and any(code in errors for code in _OFFLINE):
        pytest.skip("npm cannot reach its registry")
    assert not done.returncode, errors
    (folder / "installed").touch()
    return folder
