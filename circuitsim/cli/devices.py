"""`circuitsim devices`: the device cards; `circuitsim devices show`: one of them, as values and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import JSON_OPTION, print_facts, print_json, print_line, print_table, remark
from circuitsim.errors import CircuitsimError, SpecError

if TYPE_CHECKING:
    from circuitsim.devices import DeviceCard

_WORDS = {"device_to_device": "mismatch", "read_noise": "read noise"}

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def command(
    context: typer.Context,
    folder: Path | None = typer.Option(
        None, "--folder", help="List the cards of this folder instead of those that come with circuitsim."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """List device cards: what each describes, conductances for which it holds (S), spreads, source.

    Spreads: of a write at the largest conductance (S), of fabrication (%), of update steps (%), of offsets
    and thresholds (V, mV um); wires: ohm per segment.

    Example: circuitsim devices --folder devices

    JSON: a list of {name, file, problem, sections, range (S), spreads [{field, value, unit, meaning}],
    source, doi, description}; problem says why a card cannot be read, and is null otherwise.
    """
    if context.invoked_subcommand is not None:
        return
    found = [_summary(name, path) for name, path in _cards(folder).items()]
    if as_json:
        print_json([{key: value for key, value in item.items() if key != "spread"} for item in found])
        return
    rows = [
        [
            item["name"],
            ", ".join(_WORDS.get(section, section) for section in item["sections"]),
            _range(item["range"]),
            item["spread"],
            _short(item),
        ]
        for item in found
    ]
    count = f"{len(found)} device card{'' if len(found) == 1 else 's'}"
    where = "" if folder is None else f" in {folder}"
    print_table(
        f"{count}{where}",
        ["card", "describes", "range", "spread or value", "source"],
        rows,
        left=(0, 1, 2, 3, 4),
    )
    for item in found:
        if item["problem"]:
            remark(f"{item['file']}: {item['problem']}")
    remark("All of one card: circuitsim devices show NAME")


@app.command("show", short_help="One card: every value, and a figure.")
def show(
    card: str = typer.Argument(..., metavar="NAME|FILE", help="Name of a card, or a file (.yaml)."),
    figure: Path | None = typer.Option(
        None, "-o", "--output", metavar="FIGURE.png", help="Draw the card and write the figure here (PNG)."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show a device card: every value with its unit and meaning, its source, and a figure.

    In formulas x is the conductance over the upper end of the range. Spreads are one standard deviation;
    conductances in S, ages in s.

    Example: circuitsim devices show pcm-nandakumar-2019 -o pcm.png

    JSON: {name, file, source, doi, description, sections, range (S), values [{field, value (SI), unit,
    shown, meaning}], figure (null without -o)}.
    """
    from circuitsim.devices import find_card, load_card
    from circuitsim.report.device_values import card_sections, card_values

    path = find_card(card)
    found = load_card(path)
    if figure is not None:
        from circuitsim.report.device_card import write_device_card_figure

        write_device_card_figure(found, figure)
    values = card_values(found)
    if as_json:
        print_json(
            {
                "name": found.name,
                "file": str(path),
                "source": found.source,
                "doi": found.doi,
                "description": found.description,
                "sections": card_sections(found),
                "range": found.crossbar.range,
                "values": [_value(value) for value in values],
                "figure": None if figure is None else str(figure),
            }
        )
        return
    facts = [("source", " ".join(found.source.split())), ("file", str(path))]
    if found.description:
        facts.insert(0, ("description", " ".join(found.description.split())))
    if found.doi is not None:
        facts.insert(-1, ("doi", found.doi))
    print_facts(found.name, facts)
    groups: dict[str, list[list[str]]] = {}
    for value in values:
        place, _, name = value.field.rpartition(".")
        groups.setdefault(place, []).append([name, value.shown.replace("; ", "\n"), value.meaning])
    for place, rows in groups.items():
        print_table(place, ["name", "value", "meaning"], rows, left=(0, 1, 2))
    if not values:
        print_line("Nothing spreads: every element has its nominal value.")
    if figure is not None:
        print_line(f"figure   {figure}")


def _cards(folder: Path | None) -> dict[str, Path]:
    from circuitsim.devices import card_names

    if folder is None:
        return card_names()
    if not folder.is_dir():
        raise SpecError("is not a folder", field="--folder", value=str(folder))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _summary(name: str, path: Path) -> dict[str, Any]:
    from circuitsim.devices import load_card
    from circuitsim.report.device_values import card_sections, headline_spreads

    item: dict[str, Any] = {
        "name": name,
        "file": str(path),
        "problem": None,
        "sections": [],
        "range": None,
        "spreads": [],
        "source": None,
        "doi": None,
        "description": None,
        "spread": "",
    }
    try:
        card = load_card(path)
    except CircuitsimError as error:
        return item | {"problem": error.rule, "spread": "unreadable"}
    return item | {
        "name": card.name,
        "sections": card_sections(card),
        "range": card.crossbar.range,
        "spreads": [_value(value) for value in headline_spreads(card)],
        "source": " ".join(card.source.split()),
        "doi": card.doi,
        "description": " ".join(card.description.split()),
        "spread": _spread(card),
    }


def _value(value: Any) -> dict[str, Any]:
    return {
        "field": value.field,
        "value": value.value,
        "unit": value.unit,
        "shown": value.shown,
        "meaning": value.meaning,
    }


def _spread(card: DeviceCard) -> str:
    """Return the spreads by which technologies are compared, in a few words."""
    import numpy as np

    from circuitsim.units import engineering

    found = []
    crossbar = card.crossbar
    if crossbar.device_to_device:
        found.append(f"devices {100 * crossbar.device_to_device:.3g} %")
    if crossbar.programming is not None and crossbar.range is not None:
        found.append(f"write {engineering(float(crossbar.programming(np.array(1.0))), 'S', 3)}")
    if crossbar.update is not None:
        found.append(f"steps {100 * crossbar.update.step_spread:.3g} %")
    if card.amplifier.gain:
        found.append(f"gain {100 * card.amplifier.gain:.3g} %")
    if card.amplifier.offset:
        found.append(f"offset {engineering(card.amplifier.offset, 'V', 3)}")
    if card.diode.saturation_current:
        found.append(f"ln Is {card.diode.saturation_current:.3g}")
    if card.transistor is not None:
        found.append(f"{1e9 * card.transistor.threshold:.3g} mV um")
    for name in ("dac", "adc"):
        part = getattr(card, name)
        if part is not None:
            found.append(f"{name.upper()} {part.bits} bits")
    if card.wire is not None and card.wire.table:
        ohms = [ohm for _, ohm in card.wire.table]
        found.append(f"{min(ohms):.3g} ... {max(ohms):.3g} ohm")
    return ", ".join(found)


def _range(window: tuple[float, float] | None) -> str:
    from circuitsim.units import engineering

    if window is None:
        return ""
    return " ... ".join(engineering(end, "S") for end in window)


def _short(item: dict[str, Any]) -> str:
    """Return a DOI, or else the beginning of the source."""
    source = item["source"] or ""
    return item["doi"] or (source if len(source) <= 40 else source[:37].rstrip() + "...")
