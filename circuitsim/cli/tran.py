"""`circuitsim tran`: a circuit in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    print_facts,
    print_json,
    print_table,
    progress_console,
    remark,
)
from circuitsim.cli.source import INPUT_OPTION, SAMPLE_OPTION, SEED_OPTION, Source, read_source, sample_of
from circuitsim.errors import NetlistError, RecordError, SpecError

if TYPE_CHECKING:
    from circuitsim.netlist import Netlist
    from circuitsim.netlist.tables import FloatArray
    from circuitsim.solver.settling import Settling
    from circuitsim.solver.transient import TransientResult, TransientSettings
    from circuitsim.spice.deck_file import TransientAnalysis

_ROWS = 20
_COLUMNS = 6
_CURVES = 7
_DRAWN = 1500
"""Points of a curve, besides the corners of the sources."""
_MOST_PRINTED = 2_000_000
_UNSETTLED = 3
_INSIDE = "#"
"""In the names of nodes that the reader of decks makes."""


def command(
    circuit: Path = typer.Argument(
        ..., help="SPICE deck (.cir), network or netlist (.yaml), or record (.h5)."
    ),
    stop: str | None = typer.Option(None, "--stop", help="End (s). Default: that of the deck's .tran."),
    step: str | None = typer.Option(
        None, "--step", help="Time between printed values (s). Default: the deck's, else a hundredth."
    ),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    nodes: str | None = typer.Option(None, "--nodes", help="Nodes to report, with commas. Default: all."),
    tolerance: str = typer.Option(
        "1e-6", "--tolerance", help="Error per step, relative to the largest voltage of each node so far."
    ),
    largest_step: str | None = typer.Option(None, "--largest-step", help="Longest step (s)."),
    uic: bool = typer.Option(False, "--uic", help="Start from the initial conditions, the rest at 0."),
    until_settled: bool = typer.Option(
        False, "--until-settled", help="Relax from rest, sources constant, to the operating point."
    ),
    output: Path | None = typer.Option(None, "-o", "--output", help="Write all printed times as .csv."),
    plot: bool = typer.Option(False, "--plot", help="Draw a figure: NAME-tran.png in this folder."),
    figure: Path | None = typer.Option(None, "--figure", help="Draw a figure into this file (.png)."),
    seed: int = SEED_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Integrate a circuit in time (s): node voltages (V) and branch currents (A).

    A deck starts from its operating point, or from its initial conditions with uic; a network, whose
    sources are constant, from rest. Steps adapt to the tolerance and end at the corners of the sources.
    --until-settled says whether and when every node is within 1e-9 V of the operating point, or why it
    never will be; exit code 3 if not.

    Example: circuitsim tran netlists/digits.yaml --sample 3 --until-settled

    JSON: {title, start, time [s], nodes {name: [V]}, branches {name: [A]}, steps {accepted, rejected,
    failed}, iterations, kcl_residual {absolute (A), relative}, file, figure}. With --until-settled:
    {title, settled, reason, time (s), distance (V), largest_real_part (1/s), steps, nodes {name: V}}.
    """
    from circuitsim.solver import build_plan
    from circuitsim.solver.transient import TransientSettings, transient

    announce_compilation()
    settings = TransientSettings(
        relative_tolerance=_positive("--tolerance", tolerance),
        largest_step=None if largest_step is None else _positive("--largest-step", largest_step),
    )
    source = read_source(circuit, seed=seed)
    netlist, deck = source.netlist, source.deck
    for note in () if deck is None else deck.notes:
        remark(f"note: {note}")
    chosen = _chosen(netlist, nodes)
    inputs, _ = sample_of(source, given, sample, None, 0.0, phase="free")
    plan = build_plan(netlist)
    if until_settled:
        for option, value in (("--stop", stop), ("--step", step), ("--output", output), ("--figure", figure)):
            if value is not None:
                raise SpecError("does not go with --until-settled", field=option, value=str(value))
        _settle(source, plan, inputs, settings, chosen, as_json)
        return
    analysis = _analysis(source, stop, step, uic, circuit)
    printed = _printed_times(analysis)
    times = printed
    if plot and figure is None:
        figure = Path(f"{circuit.stem}-tran.png")
    if figure is not None:
        times = _with_drawn(printed, analysis, source)
    if analysis.largest_step is not None and settings.largest_step is None:
        settings = TransientSettings(
            relative_tolerance=settings.relative_tolerance, largest_step=analysis.largest_step
        )
    with _progress(analysis.stop) as tell:
        result = transient(
            plan,
            netlist.values(),
            stop=analysis.stop,
            step=analysis.step,
            waveforms=deck.waveforms if deck is not None else None,
            inputs=inputs[0],
            initial_voltage=deck.initial_voltage if deck is not None else None,
            element_initial=deck.element_initial if deck is not None and analysis.uic else None,
            uic=analysis.uic,
            times=times,
            settings=settings,
            progress=tell,
        )
    rows = _rows_of(times, printed)
    if output is not None:
        _write(output, result, rows, chosen)
    if figure is not None:
        _draw(figure, result, chosen, netlist.title)
    if as_json:
        print_json(_document(netlist, analysis, result, rows, chosen, output, figure))
    else:
        _print(netlist, analysis, result, rows, chosen)
        for path in (output, figure):
            if path is not None:
                remark(f"written: {path}")


def _analysis(source: Source, stop: str | None, step: str | None, uic: bool, path: Path) -> TransientAnalysis:
    from circuitsim.spice.deck_file import TransientAnalysis

    found = None
    if source.deck is not None:
        found = next((a for a in source.deck.analyses if isinstance(a, TransientAnalysis)), None)
    if stop is None:
        if found is None:
            raise SpecError("needs an end", file=path, field="--stop", remedy="Give it in seconds, as 1u.")
        end, start, largest = found.stop, found.start, found.largest_step
    else:
        end, start, largest = _positive("--stop", stop), 0.0, None
    if step is not None:
        interval = _positive("--step", step)
    elif stop is None and found is not None:
        interval = found.step
    else:
        interval = end / 100
    at_rest = uic or (found.uic if found is not None else source.deck is None)
    return TransientAnalysis(step=interval, stop=end, start=start, largest_step=largest, uic=at_rest)


def _printed_times(analysis: TransientAnalysis) -> FloatArray:
    import numpy as np

    count = (analysis.stop - analysis.start) / analysis.step
    if not count < _MOST_PRINTED:
        raise SpecError(
            f"makes more than {_MOST_PRINTED} printed values", field="--step", value=analysis.step
        )
    times = analysis.start + analysis.step * np.arange(math.floor(count + 1e-6) + 1, dtype=np.float64)
    if analysis.stop - times[-1] > 1e-6 * analysis.step:
        return np.append(times, analysis.stop)
    times[-1] = analysis.stop
    return times


def _with_drawn(printed: FloatArray, analysis: TransientAnalysis, source: Source) -> FloatArray:
    """Add times for a figure: evenly spaced ones, and corners of the sources."""
    import itertools

    import numpy as np

    corners: list[float] = []
    for waveform in source.deck.waveforms.values() if source.deck is not None else ():
        resolved = waveform.resolved(analysis.step, analysis.stop)
        corners += itertools.islice(resolved.corners(analysis.stop), 500)
    even = np.linspace(0.0, analysis.stop, _DRAWN)
    return np.unique(np.concatenate([printed, even, np.array(corners)]))


def _rows_of(times: FloatArray, printed: FloatArray) -> Any:
    import numpy as np

    return np.searchsorted(times, printed)


def _chosen(netlist: Netlist, nodes: str | None) -> list[str]:
    """Return the nodes to report: those asked for, or all, neurons first."""
    if nodes is not None:
        names = [name.strip() for name in nodes.split(",")]
        for name in names:
            if name not in netlist.node_index:
                raise SpecError("no such node", field="--nodes", value=name)
        return names
    neurons = [netlist.node_names[k] for group in reversed(list(netlist.groups.values())) for k in group]
    outputs = [netlist.node_names[k] for k in netlist.outputs.pos]
    names = list(dict.fromkeys([*outputs, *neurons, *netlist.node_names[1:]]))
    # Nodes inside of elements last: nobody gave them their names.
    return sorted(names, key=lambda name: _INSIDE in name)


def _document(
    netlist: Netlist,
    analysis: TransientAnalysis,
    result: TransientResult,
    rows: Any,
    chosen: list[str],
    output: Path | None,
    figure: Path | None,
) -> dict[str, Any]:
    return {
        "title": netlist.title,
        "start": "initial conditions" if analysis.uic else "operating point",
        "time": result.time[rows],
        "nodes": {name: result.voltage(name)[rows] for name in chosen},
        "branches": {name: result.current(name)[rows] for name in result.branch_names},
        "steps": {"accepted": result.accepted, "rejected": result.rejected, "failed": result.failed},
        "iterations": result.iterations,
        "kcl_residual": {"absolute": result.kcl_residual, "relative": result.relative_residual},
        "file": None if output is None else str(output),
        "figure": None if figure is None else str(figure),
    }


def _print(
    netlist: Netlist, analysis: TransientAnalysis, result: TransientResult, rows: Any, chosen: list[str]
) -> None:
    from circuitsim.units import engineering

    shown, shown_nodes = rows, chosen[:_COLUMNS]
    if len(rows) > _ROWS + 1:
        # Evenly through the run, its end included.
        shown = rows[[round(k * (len(rows) - 1) / _ROWS) for k in range(_ROWS + 1)]]
    table = [
        [engineering(result.time[row], "s"), *(engineering(result.voltage(n)[row], "V") for n in shown_nodes)]
        for row in shown
    ]
    print_table(f"Voltages of {netlist.title}", ["time", *shown_nodes], table, left=())
    missing = []
    if len(shown) < len(rows):
        missing.append(f"{len(rows) - len(shown)} more times")
    if len(shown_nodes) < len(chosen):
        missing.append(f"{len(chosen) - len(shown_nodes)} more nodes")
    if missing:
        remark(f"{' and '.join(missing)}: --output or --json has them\n")
    print_facts(
        "Transient",
        [
            ("from", "initial conditions" if analysis.uic else "the operating point"),
            ("until", engineering(analysis.stop, "s")),
            ("steps", f"{result.accepted} accepted, {result.rejected} rejected, {result.failed} failed"),
            ("iterations", result.iterations),
            (
                "KCL residual beyond rounding",
                f"{result.kcl_residual:.1e} A, {result.relative_residual:.1e} of the largest current",
            ),
        ],
    )


def _write(path: Path, result: TransientResult, rows: Any, chosen: list[str]) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time [s]", *(f"{n} [V]" for n in chosen), *(f"{b} [A]" for b in result.branch_names)])
    columns = [result.time, *map(result.voltage, chosen), *map(result.current, result.branch_names)]
    for row in rows:
        writer.writerow([repr(float(column[row])) for column in columns])
    try:
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise NetlistError(f"cannot be written: {error.strerror or error}", file=path) from error


def _draw(path: Path, result: TransientResult, chosen: list[str], title: str) -> None:
    from circuitsim.report.transient import draw_transient
    from circuitsim.units import engineering

    if path.suffix.lower() != ".png":
        raise RecordError("figures are PNG files", file=path, remedy="Give a name that ends in .png.")
    # The liveliest ones, in the order asked for.
    swing = {name: float(result.voltage(name).max() - result.voltage(name).min()) for name in chosen}
    outside = [name for name in chosen if _INSIDE not in name] or chosen
    liveliest = sorted(outside, key=lambda name: -swing[name])[:_CURVES]
    drawn = {name: result.voltage(name) for name in chosen if name in liveliest}
    what = f"{len(drawn)} of {len(outside)} nodes" if len(drawn) < len(outside) else "voltages"
    draw_transient(
        result.time, drawn, path, title=f"{title}: {what} over {engineering(float(result.time[-1]), 's')}"
    )


def _settle(
    source: Source,
    plan: Any,
    inputs: FloatArray,
    settings: TransientSettings,
    chosen: list[str],
    as_json: bool,
) -> None:
    from circuitsim.solver.settling import settle

    deck, netlist = source.deck, source.netlist
    if deck is not None and deck.waveforms:
        remark("sources stay at their DC values")
    found = settle(
        plan,
        netlist.values(),
        inputs=inputs[0],
        initial_voltage=deck.initial_voltage if deck is not None else None,
        element_initial=deck.element_initial if deck is not None else None,
        settings=settings,
    )
    voltage = dict(zip(netlist.node_names, found.node_voltage.tolist(), strict=True))
    if as_json:
        print_json(
            {
                "title": netlist.title,
                "settled": found.settled,
                "reason": found.reason,
                "time": found.time,
                "distance": found.distance,
                "largest_real_part": found.largest_real,
                "steps": found.steps,
                "nodes": {name: voltage[name] for name in chosen},
            }
        )
    else:
        _print_settling(netlist, found, [(name, voltage[name]) for name in chosen])
    if not found.settled:
        raise typer.Exit(_UNSETTLED)


def _print_settling(netlist: Netlist, found: Settling, voltages: list[tuple[str, float]]) -> None:
    from circuitsim.units import engineering

    shown = [(name, engineering(value, "V")) for name, value in voltages[:_ROWS]]
    print_table(f"Voltages of {netlist.title} in the end", ["node", "voltage"], shown)
    if len(shown) < len(voltages):
        remark(f"{len(voltages) - len(shown)} more nodes: --json has them\n")
    rate = found.largest_real
    print_facts(
        "Settling",
        [
            ("outcome", found.reason),
            ("after", engineering(found.time, "s")),
            ("distance", f"{found.distance:.1e} V"),
            ("spectrum", "not computed" if rate is None else f"largest real part {rate:.3g} /s"),
            ("steps", found.steps),
        ],
    )


def _positive(option: str, text: str) -> float:
    from circuitsim.units import parse_quantity

    try:
        value = parse_quantity(text)
    except SpecError as error:
        raise SpecError(error.rule, field=option, value=text, remedy=error.remedy) from error
    if value <= 0:
        raise SpecError("must be greater than zero", field=option, value=text)
    return value


@contextmanager
def _progress(stop: float) -> Iterator[Callable[[float], None] | None]:
    """Show on a terminal's standard error how far the run is; yield what to call with the time."""
    console = progress_console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as live:
        task = live.add_task("transient", total=stop)
        yield lambda time: live.update(task, completed=time)
