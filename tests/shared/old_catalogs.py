"""Catalogs as earlier releases wrote them.

Takes paths and revisions of the schema; makes empty catalogs of those, and brings what was written today back to one.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from loramux_store.schema import open_engine

BACK = {"0004": ("ALTER TABLE versions DROP COLUMN bundled",), "0003": ("DROP TABLE pins",)}
"""What undoes a revision."""


def empty_catalog(path: Path, revision: str) -> None:
    """A catalog as the release of that revision makes it."""
    config = _config()
    engine = open_engine(path)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def revisions() -> list[str]:
    """The newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def bring_back(path: Path, revision: str) -> None:
    """Takes out of a catalog of today what that revision did not have; nobody may have it open."""
    old = path.with_name("old.sqlite3")
    empty_catalog(old, revision)
    with closing(sqlite3.connect(path)) as catalog, closing(sqlite3.connect(old)) as empty:
        for newer in revisions()[: revisions().index(revision)]:
            for statement in BACK[newer]:
                catalog.execute(statement)
        catalog.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        catalog.commit()
        assert _schema(catalog) == _schema(empty)
    old.unlink()


def _schema(catalog: sqlite3.Connection) -> set[str]:
    return {row[0] for row in catalog.execute("SELECT sql FROM sqlite_master")}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "loramux_store:migrations")
    config.set_main_option("path_separator", "os")
    return config
