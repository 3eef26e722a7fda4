"""The offline companion: trains adapters for a Stable Diffusion base; knows no server."""
