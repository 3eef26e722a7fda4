"""Every version that the catalog has a row of, deleted adapters' too, and the end of those.

Takes a connection; gives what fsck and gc go by. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from loramux_store.schema import adapters, blobs, versions

__all__ = ["Counted", "faults", "forget", "take_census"]


@dataclass(frozen=True, slots=True)
class Counted:
    """A version by its files. deleted: whether its adapter is."""

    adapter: str
    number: int
    digest: str
    blob_digest: str
    size_bytes: int
    layout_digest: str
    deleted: bool

    @property
    def ref(self) -> str:
        """As in a blend."""
        return f"{self.adapter}@{self.number}"


def take_census(connection: sa.Connection) -> list[Counted]:
    """Every version, by name and number."""
    query = (
        sa.select(
            adapters.c.name,
            versions.c.number,
            versions.c.digest,
            versions.c.blob_digest,
            blobs.c.size_bytes,
            versions.c.layout_digest,
            adapters.c.delete_us.is_not(None),
        )
        .select_from(versions.join(adapters, adapters.c.id == versions.c.adapter_id).join(blobs))
        .order_by(adapters.c.name, versions.c.number)
    )
    return [Counted(*row) for row in connection.execute(query)]


def forget(connection: sa.Connection, before_us: int) -> dict[str, str]:
    """Remove every row of adapters that were deleted before a time (microseconds since 1970), and those of blobs that
    no version has then; the adapters' names, and how much each was, in words."""
    old = adapters.c.delete_us < before_us
    sizes = (
        sa.select(adapters.c.name, sa.func.count().label("versions"), sa.func.sum(blobs.c.size_bytes).label("size"))
        .join(versions, versions.c.adapter_id == adapters.c.id)
        .join(blobs, blobs.c.digest == versions.c.blob_digest)
        .where(old)
        .group_by(adapters.c.name)
        .order_by(adapters.c.name)
    )
    gone = {row.name: f"versions: {row.versions}, bytes: {row.size}" for row in connection.execute(sizes)}
    for table in reversed(adapters.metadata.sorted_tables):  # those that refer to others first
        if "adapter_id" in table.c:
            connection.execute(table.delete().where(table.c.adapter_id.in_(sa.select(adapters.c.id).where(old))))
    connection.execute(adapters.delete().where(old))
    connection.execute(blobs.delete().where(blobs.c.digest.not_in(sa.select(versions.c.blob_digest))))
    return gone


def faults(connection: sa.Connection, *, quick: bool = False) -> list[str]:
    """What SQLite finds wrong with the file itself, and with references between rows. quick: indexes are not compared
    with the rows."""
    pragma = "quick_check" if quick else "integrity_check"
    told = [text for text in connection.exec_driver_sql(f"PRAGMA {pragma}").scalars() if text != "ok"]
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return told + [f"a row of {row[0]} refers to one of {row[2]} that is not there" for row in broken]
