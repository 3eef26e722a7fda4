"""The offline companion: makes the built-in base and trains adapters; knows no server."""
