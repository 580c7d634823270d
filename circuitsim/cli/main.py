"""The command line: one file per command; what a command needs is imported when it runs."""

from __future__ import annotations

import io
import os
import sys

import typer

from circuitsim.cli import (
    calibrate,
    crosscheck,
    devices,
    fit,
    gradcheck,
    relax,
    runs,
    schema,
    serve,
    show,
    solve,
    sweep,
    train,
    tran,
)
from circuitsim.cli import compile as compile_command
from circuitsim.errors import CircuitsimError

__all__ = ["app", "main"]

app = typer.Typer(
    name="circuitsim",
    help="Learning on simulated analog hardware: compile networks to circuits, solve them, train them.",
    epilog="Exit codes: 0 done, 1 a cross-check failed, 2 bad input, 3 did not converge, or a sweep is not "
    "whole, 4 no SPICE, 130 interrupted.",
    no_args_is_help=True,
    # Plain help: it starts faster, and leaves [V] and hidden[3] as they are.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command, _summary in (
    ("compile", compile_command.command, "A network as a netlist: summary, YAML, SPICE deck."),
    ("solve", solve.command, "The operating point of one input."),
    ("tran", tran.command, "A circuit in time, or until it has settled."),
    ("gradcheck", gradcheck.command, "Every estimator against the exact gradient."),
    ("crosscheck", crosscheck.command, "Every phase and its gradient against SPICE."),
    ("relax", relax.command, "The gradient's error while a network relaxes."),
    ("train", train.command, "An experiment: train, record, draw."),
    ("sweep", sweep.command, "An experiment over grids or random designs, on many dies."),
    ("serve", serve.command, "A die as an instrument: SCPI over a socket."),
    ("calibrate", calibrate.command, "What a substrate is, from its readings alone."),
    ("fit", fit.command, "A device card from measured devices."),
    ("show", show.command, "A record as tables and figures."),
    ("runs", runs.command, "The records of a folder."),
    ("schema", schema.command, "The JSON Schema of a kind of YAML file."),
):
    app.command(_name, short_help=_summary)(_command)
app.add_typer(devices.app, name="devices", short_help="The device cards, and what one says.")


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
    """Run the command line. Exit codes: 0 done, 2 bad input, 3 did not converge, 130 interrupted.

    Of a cross-check also 1, outside its tolerances, and 4, no SPICE to check against.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except CircuitsimError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        # A full disk, a vanished folder: the system's own words say it best.
        _fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    except MemoryError as error:
        _fail(f"not enough memory for a circuit of this size: {error}", 2)


def _fail(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try again on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
