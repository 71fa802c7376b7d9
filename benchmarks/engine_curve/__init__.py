"""Throughput of a pack over slots, tokens and model sizes."""
