"""Reports beside versions, what listings show in the rows; aliases, licence and base model, revisions, an audit log."""

import json
from collections import Counter
from math import prod
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing of a row is lost; what is new is worked out from the reports."""
    for name in ("licence", "base_model", "search"):
        op.add_column("adapters", sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.add_column("adapters", sa.Column("revision", sa.INTEGER, nullable=False, server_default="1"))
    op.create_index("adapters_create", "adapters", ["create_us", "name"])
    op.create_index("adapters_update", "adapters", ["update_us", "name"])
    op.rename_table("versions", "versions_0001")
    op.drop_index("versions_digest")
    op.drop_index("versions_blob")
    _create_versions()
    _create_others()
    _move_versions()
    op.drop_table("versions_0001")
    _write_search()


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("adapter_id", sa.INTEGER, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("number", sa.INTEGER, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("blob_digest", sa.Text, sa.ForeignKey("blobs.digest"), nullable=False),
        sa.Column("layout_digest", sa.Text, sa.ForeignKey("layouts.digest"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("rank", sa.INTEGER, nullable=False),
        sa.Column("device_bytes", sa.INTEGER, nullable=False),
        sa.Column("embedding", sa.Text),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "number"),
        sqlite_strict=True,
    )
    op.create_index("versions_digest", "versions", ["digest"])
    op.create_index("versions_blob", "versions", ["blob_digest"])
    op.create_table(
        "version_details",
        sa.Column("adapter_id", sa.INTEGER, nullable=False),
        sa.Column("number", sa.INTEGER, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "number"),
        sa.ForeignKeyConstraint(["adapter_id", "number"], ["versions.adapter_id", "versions.number"]),
        sqlite_strict=True,
    )


def _create_others() -> None:
    op.create_table(
        "aliases",
        sa.Column("adapter_id", sa.INTEGER, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("number", sa.INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "alias"),
        sa.ForeignKeyConstraint(["adapter_id", "number"], ["versions.adapter_id", "versions.number"]),
        sqlite_strict=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.INTEGER, primary_key=True),
        sa.Column("time_us", sa.INTEGER, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("number", sa.INTEGER),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("audit_adapter", "audit", ["adapter", "id"])


def _move_versions() -> None:
    connection = op.get_bind()
    bodies = connection.execute(sa.text("SELECT digest, body FROM layouts"))
    layouts = {row.digest: json.loads(row.body)["modules"] for row in bodies}
    insert = sa.text(
        "INSERT INTO versions SELECT adapter_id, number, digest, blob_digest, layout_digest, kind, "
        ":rank, :device_bytes, :embedding, :notes, create_us FROM versions_0001 WHERE rowid = :rowid"
    )
    for row in connection.execute(sa.text("SELECT rowid, layout_digest, report FROM versions_0001")):
        values = _read_report(json.loads(row.report), layouts[row.layout_digest])
        connection.execute(insert, {**values, "rowid": row.rowid})
    op.execute("INSERT INTO version_details SELECT adapter_id, number, options, report FROM versions_0001")


def _read_report(report: dict[str, Any], modules: dict[str, list[Any]]) -> dict[str, object]:
    embedding = report.get("embedding")
    if embedding is not None:
        trigger, vectors, widths = embedding
        notes = json.dumps([[trigger], "embedding", "", ""], ensure_ascii=False)
        size = 4 * vectors * sum(widths.values())
        return {"rank": 0, "device_bytes": size, "embedding": json.dumps(embedding), "notes": notes}
    ranks = {row[0]: row[2] for row in report["matched"]}
    size, most = _device_bytes(report["matched"], modules), max(ranks.values(), default=0)
    return {"rank": most, "device_bytes": size, "embedding": None, "notes": json.dumps([[], "", "", ""])}


def _device_bytes(matched: list[list[Any]], modules: dict[str, list[Any]]) -> int:
    """A row of `matched`: module, kind, rank, alpha, scale, and since later algorithm, operation, axis, side values."""
    ranks, rows, widths, scales = {row[0]: row[2] for row in matched}, Counter[str](), Counter[str](), 0
    for path, (kind, outputs, *inputs) in modules.items():
        group = _group(path, kind)
        widths[group] += outputs + prod(inputs)
        rows[group] = max(rows[group], ranks.get(path, 0))
    for path, *_, axis, _ in (row for row in matched if len(row) > 8 and row[7]):
        scales += modules[path][1 if axis == "output" else 2]
    values = sum(row[8] for row in matched if len(row) > 8)
    return 2 * (values + sum(count * widths[group] for group, count in rows.items())) + 4 * scales


def _group(path: str, kind: str) -> str:
    component, _, rest = path.partition(".")
    if component != "unet":
        return component
    if ".attn1." in rest or ".attn2." in rest:
        return "attention"
    if ".ff." in rest or rest.endswith((".proj_in", ".proj_out")):
        return "feed_forward"
    return kind


def _write_search() -> None:
    connection = op.get_bind()
    query = "SELECT id, name, description, trigger_words, notes FROM adapters JOIN versions ON adapter_id = id"
    for row in connection.execute(sa.text(f"{query} AND number = latest")).all():
        words = json.loads(row.trigger_words) or json.loads(row.notes)[0]
        text = "\n".join((row.name, row.description, *words)).casefold()
        connection.execute(sa.text("UPDATE adapters SET search = :text WHERE id = :id"), {"text": text, "id": row.id})
