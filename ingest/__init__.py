"""OTLP bytes to durable journal to observations: the ground floor, which knows nothing of prices or money."""
