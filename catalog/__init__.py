"""Names to provider, model, access and price: the ground floor's reference book, which sees no telemetry."""
