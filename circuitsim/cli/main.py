"""The command line: one file per command; what a command needs is imported when it runs."""

from __future__ import annotations

import sys

import typer

from circuitsim.cli import compile as compile_command
from circuitsim.cli import gradcheck, runs, schema, show, solve, train
from circuitsim.errors import CircuitsimError

__all__ = ["app", "main"]

app = typer.Typer(
    name="circuitsim",
    help="Learning on simulated analog hardware: compile networks to circuits, solve them, train them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(compile_command.command)
app.command("solve")(solve.command)
app.command("gradcheck")(gradcheck.command)
app.command("train")(train.command)
app.command("show")(show.command)
app.command("runs")(runs.command)
app.command("schema")(schema.command)


def _version(value: bool) -> None:
    if value:
        from circuitsim import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 3 did not converge, 130 interrupted."""
    try:
        app()
    except CircuitsimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a vanished folder, a closed pipe: the system's own words say it best.
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
