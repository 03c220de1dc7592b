"""`rmq-txn completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from rmq_txn.cli import exit_codes
from rmq_txn.errors import SettingsError

SHELLS: Final = ("bash", "zsh", "tcsh")

_EPILOG = """\
Once, for bash and zsh:

  rmq-txn completion bash > ~/.local/share/bash-completion/completions/rmq-txn
  rmq-txn completion zsh > "${fpath[1]}/_rmq-txn"

The script names the commands of this version: write it again after an update.
It needs `pip install 'rmq-txn[completion]'`, once; completing needs nothing, and starts no Python.
"""


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], whole: argparse.ArgumentParser
) -> None:
    """Add `completion`, of the commands of the parser `whole`."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        description="Print a script for your shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completion.set_defaults(run=partial(_completion, whole))


def _completion(whole: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise SettingsError("shtab is not installed: pip install 'rmq-txn[completion]'") from None
    print(shtab.complete(whole, arguments.shell))
    return exit_codes.OK
