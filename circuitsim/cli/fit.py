"""`circuitsim fit`: a device card from measured devices."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import JSON_OPTION, print_facts, print_json, print_line, print_table
from circuitsim.cli.source import check_choice
from circuitsim.errors import SpecError
from circuitsim.units import parse_quantity

if TYPE_CHECKING:
    from circuitsim.devices.fit.measurements import Measurement
    from circuitsim.devices.fit.result import DeviceFit, Estimate

_SHOWN = 8
"""Figures of a checksum in a table."""


def command(
    measured: Path = typer.Argument(..., help="Measured devices (.csv)."),
    output: Path | None = typer.Option(None, "-o", "--output", help="Write the card here (.yaml)."),
    kind: str | None = typer.Option(
        None, help="What was measured: pulses, reads or curves; by default what the columns say."
    ),
    window: tuple[str, str] | None = typer.Option(
        None, help="Of pulses: lowest and highest conductance (S) of the window; fitted by default."
    ),
    update: str | None = typer.Option(
        None, help="Of pulses: linear, soft_bounds or exponential; by default the likeliest."
    ),
    diode: bool = typer.Option(False, "--diode", help="Of I-V curves: diodes, not memristive devices."),
    without: list[str] = typer.Option([], help="Leave a device out; as often as needed."),
    name: str | None = typer.Option(None, help="The card's name; by default that of its file."),
    figure: bool = typer.Option(True, help="Draw the fit (CARD.png)."),
    seed: int = typer.Option(0, min=0, help="Seed of the resamples."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Fit a device card to measured devices: values, spreads, 95 % intervals by resampling devices.

    Columns, with a unit in brackets if it is not the SI unit, conductance [uS]:
    pulses: device, cycle (optional), pulse (0 before any), direction (up, down), conductance (S);
    reads: device, cycle (optional), target (S, optional), time (s, optional), conductance (S);
    curves: device, voltage (V), current (A).
    Rows of one device, cycle and target are reads of one write.

    Example: circuitsim fit devices/examples/pulses-synthetic.csv -o my-card.yaml

    JSON: {file, sha256, kind, devices, cycles, readings, finding, estimates [{name, value, low, high, unit,
    meaning, field (of the card)}], criterion {model: BIC}, notes, card, written, figure}.
    """
    from circuitsim.data.measurements import KINDS, load_measurement
    from circuitsim.devices.fit.card_text import card_document, card_text
    from circuitsim.devices.fit.measurements import left_out

    if kind is not None:
        check_choice("--kind", kind, KINDS)
    if output is not None and output.suffix.lower() not in (".yaml", ".yml"):
        raise SpecError("must be a .yaml file", field="--output", value=str(output))
    limits = _window(window)
    data = load_measurement(measured, kind=kind)  # type: ignore[arg-type]
    if without:
        data = left_out(data, without)
    fit = _fitted(data, limits, update, diode, seed)
    digest = _sha256(measured)
    document = card_document(
        fit,
        name=name or (output or measured).stem,
        source=f"fitted to {measured.name}, sha256 {digest}",
        description=_description(fit) + (f" Left out: {', '.join(without)}." if without else ""),
    )
    picture: Path | None = None
    if output is not None:
        _write(output, card_text(fit, document, heading=_heading(fit, measured)))
        if figure:
            from circuitsim.report.device_fit import write_fit

            picture = write_fit(fit, output.with_suffix(".png"))
    if as_json:
        print_json(
            {
                "file": str(measured),
                "sha256": digest,
                "kind": fit.kind,
                "devices": fit.devices,
                "cycles": fit.cycles,
                "readings": fit.readings,
                "finding": fit.finding,
                "estimates": [_plain(estimate) for estimate in fit.estimates],
                "criterion": fit.criterion,
                "notes": fit.notes,
                "card": document,
                "written": None if output is None else str(output),
                "figure": None if picture is None else str(picture),
            }
        )
        return
    _print(fit, measured, digest)
    if output is not None:
        print_line(f"card     {output}")
    if picture is not None:
        print_line(f"figure   {picture}")


def _window(window: tuple[str, str] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    values = []
    for text in window:
        try:
            values.append(parse_quantity(text))
        except SpecError as error:
            raise SpecError(error.rule, field="--window", value=text, remedy=error.remedy) from error
    if not 0 <= values[0] < values[1]:
        raise SpecError(
            "must be two rising conductances in S",
            field="--window",
            value=" ".join(window),
            remedy="Write for example --window 1u 100u.",
        )
    return values[0], values[1]


def _fitted(
    data: Measurement, window: tuple[float, float] | None, update: str | None, diode: bool, seed: int
) -> DeviceFit:
    from circuitsim.devices.fit.curves import fit_curves
    from circuitsim.devices.fit.measurements import CurveData, PulseData
    from circuitsim.devices.fit.pulses import UPDATES, fit_pulses
    from circuitsim.devices.fit.reads import fit_reads

    pulses, curves = isinstance(data, PulseData), isinstance(data, CurveData)
    for option, given, fits, what in (
        ("--window", window is not None, pulses, "pulses"),
        ("--update", update is not None, pulses, "pulses"),
        ("--diode", diode, curves, "I-V curves"),
    ):
        if given and not fits:
            raise SpecError(f"is for {what}, and {data.file} holds others", field=option)
    if update is not None:
        check_choice("--update", update, UPDATES)
    if isinstance(data, PulseData):
        return fit_pulses(data, window=window, update=update, seed=seed)  # type: ignore[arg-type]
    if isinstance(data, CurveData):
        return fit_curves(data, diode=diode, seed=seed)
    return fit_reads(data, seed=seed)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _description(fit: DeviceFit) -> str:
    return f"{fit.finding}. {_counts(fit)}."


def _counts(fit: DeviceFit) -> str:
    parts = ((fit.devices, "device"), (fit.cycles, "cycle"), (fit.readings, "reading"))
    return ", ".join(_count(number, noun) for number, noun in parts)


def _heading(fit: DeviceFit, measured: Path) -> list[str]:
    from circuitsim.devices.fit.spread import LEVEL

    text = [f"Made by `circuitsim fit {measured.name}`."]
    if any(estimate.interval is not None for estimate in fit.estimates):
        text.append(f"[low ... high]: {100 * LEVEL:g} % confidence intervals, by resampling devices.")
    return text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SpecError(f"cannot be written: {error.strerror or error}", file=path) from error


def _plain(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval or (None, None)
    return {
        "name": estimate.name,
        "value": estimate.value,
        "low": low,
        "high": high,
        "unit": estimate.unit,
        "meaning": estimate.meaning,
        "field": estimate.field or None,
    }


def _print(fit: DeviceFit, measured: Path, digest: str) -> None:
    from circuitsim.devices.fit.card_text import plain
    from circuitsim.devices.fit.spread import LEVEL

    rows = []
    for estimate in fit.estimates:
        ends = estimate.interval
        interval = "" if ends is None else " ... ".join(plain(end, spice=estimate.spice) for end in ends)
        value = plain(estimate.value, estimate.unit, spice=estimate.spice)
        rows.append((estimate.name, value, interval, estimate.meaning))
    facts: list[tuple[str, object]] = [
        ("measured", f"{fit.kind}: {_counts(fit)}"),
        ("sha256", f"{digest[:_SHOWN]}..."),
        ("finding", fit.finding),
    ]
    if fit.criterion:
        best = min(fit.criterion.values())
        ranked = sorted(fit.criterion.items(), key=lambda item: item[1])
        facts.append(
            ("information criterion", ", ".join(f"{model} +{value - best:.3g}" for model, value in ranked))
        )
    print_facts(str(measured), facts)
    title = f"Estimates, with {100 * LEVEL:g} % confidence intervals"
    print_table(title, ["number", "value", "interval", "meaning"], rows, left=(0, 3))
    for note in fit.notes:
        print_line(f"note: {note}")
