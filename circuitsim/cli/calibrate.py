"""`circuitsim calibrate`: what a substrate is, from its readings alone."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    print_facts,
    print_json,
    print_line,
    print_table,
    remark,
)
from circuitsim.cli.source import read_source
from circuitsim.errors import SpecError
from circuitsim.file_kinds import is_experiment

if TYPE_CHECKING:
    from circuitsim.chip.substrate import Substrate
    from circuitsim.devices import DeviceCard
    from circuitsim.instrument.calibration.calibration import Calibration, Estimate
    from circuitsim.learning import Cost
    from circuitsim.netlist import Netlist

_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))
_QUANTITIES = ("gain", "offset", "saturation", "back_gain", "forward", "back", "anchor", "copy_slope")


def command(
    substrate: str = typer.Argument(
        ..., help="simulated, visa:RESOURCE, mock:FILE or python:MODULE:FUNCTION."
    ),
    network: Path | None = typer.Option(
        None,
        "--network",
        help="Network description or experiment (.yaml); `circuitsim serve` tells its own if left out.",
    ),
    cards: list[str] = typer.Option(
        [], "--cards", help="Device card of a simulated die: its name or a file; repeat for several."
    ),
    seed: int | None = typer.Option(
        None,
        "--seed",
        min=0,
        help="Seed of the conductances and inputs that are tried; 0, or an experiment's.",
    ),
    die: int | None = typer.Option(None, "--die", min=0, help="Seed of a simulated die."),
    samples: int = typer.Option(128, "--samples", min=16, help="Inputs of each phase."),
    averaging: int = typer.Option(16, "--averaging", min=1, help="Readings of each phase."),
    timeout: float = typer.Option(
        10.0, "--timeout", min=0.1, help="Seconds an instrument may take to answer."
    ),
    output: Path | None = typer.Option(None, "-o", "--output", help="Write the calibration here (.yaml)."),
    figure: Path | None = typer.Option(None, "--figure", help="Draw every amplifier here (.png)."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Measure a substrate: noise, amplifiers, correction, devices, each number with a standard error.

    Noise and offsets are in V, errors of devices in S; gains, saturations and slopes are ratios to the
    design's. The substrate is programmed several times; one
    that can keep its state gets it back, another is left with the network's initial conductances. An
    experiment with `substrate: mock:FILE` learns on a simulated chip with what was measured; the file's
    `card` is an item of an experiment's `cards`, for new dies with these spreads.

    Example: circuitsim calibrate simulated --network netlists/digits-tapered.yaml --cards spread -o die.yaml

    JSON: the calibration as in its file: {identity, circuit, date, seed, readings, beta, notes, dac, adc,
    largest_gain, noise {single, channels, averaged, change: {value, error, unit}}, amplifiers {bank: {gain,
    offset, ...: {unit, mean, mean_error, spread, spread_error, values, errors}}}, senses, crossbars, card},
    and {written, figure}.
    """
    from circuitsim.instrument.calibration.calibrating import calibrate_substrate
    from circuitsim.instrument.calibration.calibration import write_calibration

    for option, path, endings in (("--output", output, (".yaml", ".yml")), ("--figure", figure, (".png",))):
        if path is not None and path.suffix.lower() not in endings:
            raise SpecError(f"must be a {endings[0]} file", field=option, value=str(path))
    announce_compilation()
    opened = _opened(substrate, network, cards, seed, die, timeout)
    try:
        found = calibrate_substrate(
            opened.substrate,
            opened.netlist,
            opened.cost,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            seed=opened.seed,
            samples=samples,
            averaging=averaging,
            progress=lambda what: remark(f"{what} ..."),
        )
    finally:
        opened.substrate.close()
    if output is not None:
        write_calibration(found, output)
    if figure is not None:
        from circuitsim.report.calibration import write_calibration_figure

        write_calibration_figure(found, figure)
    if as_json:
        written = {"written": _text(output), "figure": _text(figure)}
        print_json(found.model_dump(mode="json") | written)
        return
    _print(found)
    if output is not None:
        print_line(f"calibration  {output}")
    if figure is not None:
        print_line(f"figure       {figure}")


@dataclass(frozen=True, kw_only=True)
class _Opened:
    substrate: Substrate
    netlist: Netlist
    cost: Cost
    seed: int


def _opened(
    address: str, path: Path | None, cards: list[str], seed: int | None, die: int | None, timeout: float
) -> _Opened:
    """Open a substrate, with the network that it is said to hold."""
    from circuitsim.devices import merged_cards
    from circuitsim.instrument.opening import check_address, open_substrate

    try:
        kind, _ = check_address(address)
    except SpecError as error:
        raise SpecError(error.rule, field="SUBSTRATE", value=address, remedy=error.remedy) from error
    for option, given in (("--cards", cards), ("--die", die is not None)):
        if given and kind != "simulated":
            remedy = "Leave it out: what the substrate is, is what is measured."
            raise SpecError("is for a simulated die", field=option, remedy=remedy)
    settings: dict[str, Any] = {}
    folder = Path()
    card: DeviceCard
    if path is None:
        if kind != "visa":
            raise SpecError(
                "is needed", field="--network", remedy="Name the network that the substrate holds."
            )
        return _served(address, seed or 0, timeout)
    if is_experiment(path):
        from circuitsim.study import load_experiment, prepare

        experiment = load_experiment(path)
        changes = {"seed": seed, "die": die, "cards": tuple(_card_paths(cards)) or None}
        experiment = experiment.model_copy(update={k: v for k, v in changes.items() if v is not None})
        bench = prepare(experiment, folder=path.parent, file=path)
        netlist, cost, card = bench.plan.netlist, bench.cost, bench.card
        number, chosen = bench.chip.seed, experiment.seed
        for name in ("readout", "programming", "update"):
            settings[name] = getattr(experiment, name)
    else:
        source = read_source(path, seed=seed or 0)
        if source.cost is None:
            remedy = "Give the network description, or an experiment."
            raise SpecError("has no cost, and a substrate nudges by one", file=path, remedy=remedy)
        netlist, cost, card = source.netlist, source.cost, merged_cards(_card_paths(cards))
        chosen = seed or 0
        number = chosen if die is None else die
    opened = open_substrate(
        address, netlist, cost, card, die=number, folder=folder, timeout=timeout, **settings
    )
    return _Opened(substrate=opened, netlist=netlist, cost=cost, seed=chosen)


def _served(address: str, seed: int, timeout: float) -> _Opened:
    """Open an instrument that says itself which network it holds."""
    import yaml

    from circuitsim.compiler import compile_network
    from circuitsim.instrument.client import VisaSubstrate
    from circuitsim.learning import Cost
    from circuitsim.network import parse_network

    resource = address.partition(":")[2]
    opened = VisaSubstrate(resource, timeout=timeout)
    try:
        text = opened.circuit()
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError:
            document = None
        if not isinstance(document, dict):
            raise SpecError(
                "does not say which network it holds",
                field="SUBSTRATE",
                value=address,
                remedy="Name it with --network.",
            )
        network = parse_network(document, file=f"network of {resource}")
        netlist = compile_network(network, seed=seed)
        return _Opened(substrate=opened, netlist=netlist, cost=Cost.of(network), seed=seed)
    except BaseException:
        opened.close()
        raise


def _card_paths(cards: list[str]) -> list[str]:
    from circuitsim.devices import find_card

    try:
        return [str(find_card(card).resolve()) for card in cards]
    except SpecError as error:
        raise SpecError(error.rule, field="--cards", value=error.value, remedy=error.remedy) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print(found: Calibration) -> None:
    noise = found.noise
    facts: list[tuple[str, object]] = [
        ("substrate", found.identity),
        ("readings", f"{found.readings:,}"),
        ("read noise", _estimate(noise.single)),
        ("root-n law", f"{_estimate(noise.averaged)} at {noise.averaging} readings"),
    ]
    if noise.change is not None:
        facts.append(("noise of changes", _estimate(noise.change)))
    facts.append(("ADC offset", f"{_number(noise.adc_offset, 'V')}, noise {_number(noise.adc_noise, 'V')}"))
    if found.beta is not None:
        facts.append(("beta", f"{found.beta:g}"))
    print_facts(found.circuit, facts)
    rows = []
    for name, block in [*found.amplifiers.items(), *found.senses.items()]:
        for quantity in _QUANTITIES:
            series = getattr(block, quantity, None)
            if series is None:
                continue
            known = sum(value is not None for value in series.values)
            rows.append(
                (
                    name,
                    quantity.replace("_", " "),
                    f"{known}/{len(series.values)}",
                    _pair(series.mean, series.mean_error, series.unit),
                    _pair(series.spread, series.spread_error, series.unit),
                    _pair(_typical(series.errors), None, series.unit),
                )
            )
    if rows:
        print_table(
            "Amplifiers: ratios to the design's, with standard errors",
            ["block", "quantity", "measured", "mean", "spread", "error of one"],
            rows,
            left=(0, 1),
            groups=True,
        )
    devices = [
        (
            name,
            _estimate(item.error),
            _estimate(item.device_to_device),
            _estimate(item.write),
            _estimate(item.read_back),
            str(len(item.stuck)),
        )
        for name, item in found.crossbars.items()
    ]
    if devices:
        columns = ["crossbar", "error", "device to device", "write", "read back", "stuck"]
        print_table("Devices: read back minus asked, and what is in it", columns, devices)
    for note in found.notes:
        print_line(f"note: {note}")


def _typical(errors: tuple[float | None, ...]) -> float:
    known = [error for error in errors if error is not None]
    return (sum(error**2 for error in known) / max(len(known), 1)) ** 0.5


def _estimate(estimate: Estimate) -> str:
    return _pair(estimate.value, estimate.error, estimate.unit)


def _pair(value: float, error: float | None, unit: str) -> str:
    """Return a number with its standard error, to as many places as that leaves meaning."""
    scale, prefix = 1.0, ""
    if unit != "1":
        largest = max(abs(value), error or 0.0)
        scale, prefix = next(((s, p) for s, p in _PREFIXES if largest >= s), (1e-12, "p"))
    shown = f" {prefix}{unit}" if unit != "1" else ""
    if error is None:
        return f"{value / scale:.2g}{shown}"
    if error <= 0:
        return f"{value / scale:.4g} ± 0{shown}"
    places = min(max(1 - math.floor(math.log10(error / scale)), 0), 6)
    return f"{value / scale:.{places}f} ± {error / scale:.{places}f}{shown}"


def _number(value: float, unit: str) -> str:
    from circuitsim.units import engineering

    return engineering(value, unit, 3)
