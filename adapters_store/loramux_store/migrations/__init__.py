"""Alembic scripts of the catalog; they travel inside the package. schema.py runs them."""
