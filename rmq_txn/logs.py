"""
Structured log lines of this package: one event in words, then fields.

Lines go to the standard library's loggers `rmq_txn.<module>`, so an application's handlers and
levels apply; where none is set up, Python prints warnings and errors to stderr. Each line carries
the context bound with `structlog.contextvars`, which is how `txn_id` reaches every line, the user's
own structlog lines included. Bodies, SQL arguments and secrets are never passed to a log call.
"""

from __future__ import annotations

import contextvars
import logging
import re
import unicodedata
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias, cast

import structlog

# The renderer raises at such a name, and an application may bind any: a log call must not fail.
_NOT_IN_A_NAME = re.compile(r'[\x00-\x20="]')
# So that a record names the line that logged, not structlog's.
_FRAMES_OF_STRUCTLOG = 4
_as_text = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def _to_stdlib(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str, str], dict[str, Any]]:
    """
    Put the fields into the text, for plain handlers, and beside it, for structured ones.

    One record attribute holds them all: a field called `name` or `args` would break LogRecord.
    """
    text = str(event.pop("event", ""))
    exc_info = event.pop("exc_info", None)
    fields = dict(event)
    shown = {_NOT_IN_A_NAME.sub("_", name): _plain(value) for name, value in fields.items()}
    line = f"{text} {_as_text(None, '', shown)}".rstrip()
    return ("%s", line), {
        "stacklevel": _FRAMES_OF_STRUCTLOG,
        "exc_info": exc_info,
        "extra": {"rmq_txn_event": text, "rmq_txn_fields": fields},
    }


def _plain(value: object) -> object:
    if isinstance(value, (int, float, type(None))):
        return value
    return one_line(str(value))


def one_line(text: str) -> str:
    """
    Return a text from anywhere as one line that a terminal shows and does not obey.

    Line breaks of every kind become spaces. Control characters, marks that turn the direction of
    what follows, and halves of surrogate pairs become escapes such as `\\x1b`: they would hide or
    forge what stands beside them, or make a terminal do things.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, " ".join(text.splitlines())))


def lines(text: str) -> str:
    """Return a text of several lines, each as `one_line` does."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co")
    return character.encode("unicode_escape").decode() if hidden else character


class _LineFormatter(logging.Formatter):
    """What handlers and drivers raise is in tracebacks, which no field of ours holds."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def log_to_stderr() -> None:
    """Write the log of this process, a program of ours, to stderr; unless it has handlers already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def unpack_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """
    Take the fields of this package's lines as fields: a structlog processor for applications.

    Put it into `foreign_pre_chain` of `structlog.stdlib.ProcessorFormatter`; other loggers' lines
    pass unchanged.
    """
    record = event["_record"]
    fields: dict[str, Any] | None = getattr(record, "rmq_txn_fields", None)
    if fields is not None:
        event["event"] = record.rmq_txn_event
        event.update(fields)
    return event


# Greedy up to the last @ of the word: a password may itself hold a slash or an @. The placeholder that
# messages and help texts use is no secret.
_USERINFO = re.compile(r"(?<=://)(?!user:password@)\S*@")


def redact(text: str) -> str:
    """Replace user name and password of every URL in `text` by `***`."""
    return _USERINFO.sub("***@", text)


class _Logger(structlog.stdlib.BoundLogger):
    """A line that nobody wants costs one check and is not assembled: 8 function calls less a transaction."""

    def debug(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """See structlog."""
        if self._logger.isEnabledFor(logging.DEBUG):
            return self._proxy_to_logger("debug", event, *args, **fields)
        return None

    def info(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
        """See structlog."""
        if self._logger.isEnabledFor(logging.INFO):
            return self._proxy_to_logger("info", event, *args, **fields)
        return None


def get_logger(module: str) -> structlog.stdlib.BoundLogger:
    """Make the logger of one module of this package."""
    logger = structlog.wrap_logger(
        logging.getLogger(f"rmq_txn.{module}"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _to_stdlib,
        ],
        wrapper_class=_Logger,
    )
    # Bound once: the lazy proxy would assemble a logger for each line, the suppressed ones included.
    return cast(structlog.stdlib.BoundLogger, logger.bind())


Bound: TypeAlias = Mapping[str, contextvars.Token[Any]]
"""What was bound to the context, and what was there before."""


def bind(**fields: str) -> Bound:
    """Bind fields to every log line of this context, until they are given to `unbind`."""
    return structlog.contextvars.bind_contextvars(**fields)


def unbind(bound: Bound) -> None:
    """
    Put back what was bound before, in the context of the caller, be it another one.

    As `structlog.contextvars.bound_contextvars`, which reads the whole context to know what was there and
    takes 11 function calls instead of 4. Not `reset_contextvars`: frameworks end a block in a copy of its
    context.
    """
    before: dict[str, Any] = {}
    for name, token in bound.items():
        there = token.old_value
        before[name] = ... if there is contextvars.Token.MISSING else there  # structlog's word for unbound
    structlog.contextvars.bind_contextvars(**before)


def describe(error: BaseException) -> str:
    """Return kind and text of an error, also of one whose text can't be made: it is counted all the same."""
    try:
        text = str(error)
    except BaseException as problem:  # noqa: BLE001 - of business code, like the error itself
        text = f"its text can't be made: {type(problem).__name__}"
    return f"{type(error).__name__}: {text}"
