"""The catalog's tables, its connections and its migrations.

Takes a path; gives an Engine with SQLite's settings on every connection and the schema brought up
to date. Knows no records.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from loramux_store.errors import SchemaTooNew

__all__ = [
    "adapters",
    "aliases",
    "audit",
    "blobs",
    "details",
    "layouts",
    "migrate",
    "open_engine",
    "pins",
    "refuse_newer",
    "versions",
]

_METADATA = sa.MetaData()
_BUSY_MS = 5000

layouts = sa.Table(
    "layouts",
    _METADATA,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("body", sa.Text),
    sa.Column("create_us", sa.Integer),
)
blobs = sa.Table(
    "blobs",
    _METADATA,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("size_bytes", sa.Integer),
    sa.Column("create_us", sa.Integer),
)
adapters = sa.Table(
    "adapters",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("labels", sa.Text),
    sa.Column("default_weight", sa.REAL),
    sa.Column("trigger_words", sa.Text),
    sa.Column("description", sa.Text),
    sa.Column("licence", sa.Text),
    sa.Column("base_model", sa.Text),
    sa.Column("search", sa.Text),  # what words of a filter look in
    sa.Column("revision", sa.Integer),
    sa.Column("latest", sa.Integer),
    sa.Column("create_us", sa.Integer),
    sa.Column("update_us", sa.Integer),
    sa.Column("delete_us", sa.Integer),
)
versions = sa.Table(
    "versions",
    _METADATA,
    sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text),
    sa.Column("blob_digest", sa.Text, sa.ForeignKey("blobs.digest")),
    sa.Column("layout_digest", sa.Text, sa.ForeignKey("layouts.digest")),
    sa.Column("kind", sa.Text),
    sa.Column("rank", sa.Integer),
    sa.Column("device_bytes", sa.Integer),
    sa.Column("embedding", sa.Text),
    sa.Column("bundled", sa.Text),  # JSON list of embeddings in the form of that column
    sa.Column("notes", sa.Text),
    sa.Column("create_us", sa.Integer),
)
# Beside versions, because a report can be a hundred times as long as the rest of the row: listings never read it.
details = sa.Table(
    "version_details",
    _METADATA,
    sa.Column("adapter_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("options", sa.Text),
    sa.Column("report", sa.Text),
    sa.ForeignKeyConstraint(("adapter_id", "number"), ("versions.adapter_id", "versions.number")),
)
aliases = sa.Table(
    "aliases",
    _METADATA,
    sa.Column("adapter_id", sa.Integer, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.ForeignKeyConstraint(("adapter_id", "number"), ("versions.adapter_id", "versions.number")),
)
pins = sa.Table(
    "pins",
    _METADATA,
    sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("at", sa.Text, primary_key=True),  # of a reference what follows the @; empty for the bare name
    sa.Column("tier", sa.Text),
    sa.Column("create_us", sa.Integer),
)
audit = sa.Table(
    "audit",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time_us", sa.Integer),
    sa.Column("who", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("adapter", sa.Text),
    sa.Column("number", sa.Integer),
    sa.Column("detail", sa.Text),
)


def open_engine(path: Path) -> sa.Engine:
    """An engine whose connections begin transactions by our word, not the driver's."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        # A writer that begins as a reader can fail half way with SQLITE_BUSY.
        mode = "IMMEDIATE" if connection.get_execution_options().get("write") else "DEFERRED"
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def refuse_newer(connection: sa.Connection) -> bool:
    """Raise SchemaTooNew for a schema from the future; otherwise whether it is today's."""
    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    known = [script.revision for script in scripts.walk_revisions()]
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise SchemaTooNew(found, known[0])
    return found == known[0]


def migrate(engine: sa.Engine) -> None:
    """Bring the schema up to date in one transaction; refuse one from the future."""
    config = Config()
    config.set_main_option("script_location", "loramux_store:migrations")
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if refuse_newer(connection):
            return
        config.attributes["connection"] = connection
        with warnings.catch_warnings():
            # alembic warns of options that only an alembic.ini has
            warnings.simplefilter("ignore", DeprecationWarning)
            command.upgrade(config, "head")
