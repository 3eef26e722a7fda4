"""Alembic's entry: runs the steps on the connection that schema.py hands over.

No alembic.ini, no logging set-up, no engine of its own.
"""

from alembic import context


def _run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, transactional_ddl=True)
    # No begin_transaction: schema.py holds the write transaction around all steps.
    context.run_migrations()


_run()
