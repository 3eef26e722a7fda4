"""How the server logs: lines on standard error, JSON or for people, from our loggers and everybody else's alike.

Takes a level and a form; sets up logging for the process. It knows nothing else. Prompts are never logged.
"""

import logging
import sys
from typing import Literal

import structlog

from loramux_server.tracing import add_trace_id

_SHARED = (
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_trace_id,
    structlog.processors.format_exc_info,
)


def configure(level: int, form: Literal["json", "console"] = "json") -> None:
    """Call once, from a command; never at import."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    render = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=render, foreign_pre_chain=list(_SHARED)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("alembic", "httpx", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
