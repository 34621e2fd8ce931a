"""The shell: command line, settings, wiring, HTTP API. Nothing imports it."""
