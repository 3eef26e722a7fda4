"""From a checked container to a compiled file, whatever it holds.

Takes a Container, the options and the layouts; gives a plan with its accept report, then bytes. Knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loramux_store.errors import InvalidArgument
from loramux_store.formats.embedding import plan_embedding
from loramux_store.formats.plan import Plan, make_plan
from loramux_store.header import Container
from loramux_store.layout import Layout
from loramux_store.record import AcceptReport, InterpretOptions

__all__ = ["convert", "planned"]


def planned(
    container: Container,
    options: InterpretOptions,
    name: str,
    layouts: Sequence[Layout],
    wanted: Layout | None,
    recorded: AcceptReport | None = None,
    base: Layout | None = None,
) -> Plan:
    """What a file would become. wanted: the layout that it must be of; recorded: what is recorded of it, where it is a
    version already; base: the layout of the base that runs here. Raises Refused, InvalidArgument."""
    embedding = plan_embedding(container, options, name, layouts, wanted)
    if embedding is not None:
        return embedding
    if options.trigger is not None:
        raise InvalidArgument("options.trigger", options.trigger, "none: the file is no embedding")
    operations = None if recorded is None else {module.module: module.operation for module in recorded.matched}
    return make_plan(container, options, layouts, wanted, operations, base)


def convert(plan: Plan, sink: Callable[[memoryview], object]) -> tuple[str, ...]:
    """Give the compiled file's bytes to the sink; the warnings that only values can give. Raises Refused."""
    # here, not above: whoever only lists adapters does not pay for importing torch
    from loramux_store.formats.convert import convert

    return convert(plan, sink)
