"""The recipe that made the built-in base and its adapters; `python -m loramux_train.builtin` runs its stages."""
