"""Benchmarks that can be run again."""
