"""The command line reference, made from the parsers of `rmq_txn.cli`, so that it can't be out of date."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from rmq_txn.cli import build_parser

_WIDTH = 100


def leaves(
    parser: argparse.ArgumentParser, summary: str = ""
) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield each command that can be run, with its line in the help of the one above, in order."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser, summary
    for action in inner:
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield from leaves(command, summaries.get(name, ""))


def reference() -> str:
    """Return one section a command, in Markdown."""
    parser = build_parser()
    parts = [str(parser.description), _prose(parser.epilog)]
    for command, summary in leaves(parser):
        command.formatter_class = _Wide
        parts += [
            f"## {command.prog}",
            _sentence(summary),
            f"```text\n{_usage(command)}```",
            _prose(command.description),
            _arguments(command),
            _prose(command.epilog),
        ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)


def _usage(command: argparse.ArgumentParser) -> str:
    return command.format_usage().removeprefix("usage: ").replace(" [-h]", "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def _prose(text: str | None) -> str:
    """Return paragraphs as they are, and indented lines as code."""

    def fenced(found: re.Match[str]) -> str:
        lines = "".join(f"{line.strip()}\n" for line in found[0].splitlines())
        return f"\n```sh\n{lines}```\n"

    return re.sub(r"(?:^ {2}.*\n?)+", fenced, text or "", flags=re.MULTILINE)


def _arguments(command: argparse.ArgumentParser) -> str:
    rows = [
        f"| `{_name(action)}` | {_help(action)} |"
        for action in command._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    return "\n".join(["| argument | |", "|---|---|", *rows]) if rows else ""


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return action.option_strings[-1] + value


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("|", "\\|")
    return f"{text} (required)" if action.required and action.option_strings else text
