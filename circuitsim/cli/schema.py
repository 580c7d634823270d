"""`circuitsim schema`: JSON Schemas of the YAML files, for editors."""

from __future__ import annotations

import typer

from circuitsim.cli.output import print_json
from circuitsim.errors import SpecError


def command(
    kind: str = typer.Argument("network", help="network, experiment or card."),
) -> None:
    """Print the JSON Schema of a kind of YAML file.

    Example: [bold]circuitsim schema network > network.schema.json[/bold]

    Quantities are in SI units (S, F, V, A) and may carry SPICE suffixes: 10k, 2meg, 1u.
    """
    if kind == "network":
        from circuitsim.network import NetworkSpec as model
    elif kind == "experiment":
        from circuitsim.study import ExperimentSpec as model  # type: ignore[assignment]
    elif kind == "card":
        from circuitsim.devices import DeviceCard as model  # type: ignore[assignment]
    else:
        raise SpecError("is not a kind of file", value=kind, remedy="Known: network, experiment, card.")
    print_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}
    )
