"""The root of what the shell raises for people to read: `tollbook: <message>` on stderr and exit code 1."""

from __future__ import annotations


class TollbookError(Exception):
    """Something that its reader can act on.

    TollbookError
    ├── SettingsError     settings that cannot be used
    ├── StartError        a data folder or a port in use, or a price or accounts file that is wrong
    ├── Problem           a refusal with a code and a next step
    ├── ClientError       a running server that does not answer, or refuses
    └── ReplayError       a recording that cannot be read or sent
    """
