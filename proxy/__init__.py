"""Live calls: what agents send to providers through us, and what comes back.

Bytes in, bytes out: wire formats, usage, event streams, translation, failures and redaction know
nothing of sockets; the server around them does.
"""
