"""The command line: one click command a verb, which parses, calls a job and prints. Nothing heavy is imported here."""

import errno
import os
import sys
import traceback
from typing import Any, NoReturn

import click

# Each hangs its commands on the group.
from imgcls.cli import (  # noqa: F401
    data,
    evaluating,
    explaining,
    lists,
    predicting,
    registry,
    store,
    sweeps,
    training,
)
from imgcls.cli.root import cli
from imgcls.cli.words import parse_words
from imgcls.errors import UserError

__all__ = ["cli", "main", "parse_words"]


def main() -> NoReturn:
    """Run the command line: 2 and one paragraph for a user's mistake, 128 + signal for a stop."""
    words = [word for word in sys.argv[1:] if word != "--debug"]  # at any place, for it is an afterthought
    debug = len(words) < len(sys.argv) - 1
    try:
        code: Any = cli.main(words, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"imgcls: error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if debug:
            traceback.print_exc()
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"imgcls: error: the disk is full{where}: {error.strerror}. Free space and run again.", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BaseException as error:
        signum = getattr(error, "signum", None)  # jobs.signals.Stopped, which is not imported for its name alone
        if signum is None:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        # Python takes more than a second to shut down, in which a second Ctrl-C would change the exit code.
        os._exit(128 + signum)
    sys.exit(code if isinstance(code, int) else 0)
