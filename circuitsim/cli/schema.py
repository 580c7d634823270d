"""`circuitsim schema`: JSON Schemas of the YAML files, for editors."""

from __future__ import annotations

import typer

from circuitsim.cli.output import JSON_OPTION, print_json
from circuitsim.errors import SpecError


def command(
    kind: str = typer.Argument("network", help="network, experiment, card or sweep."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Print the JSON Schema of a kind of YAML file.

    Quantities are in SI units (S, F, V, A) and may carry SPICE suffixes: 10k, 2meg, 1u.

    Example: circuitsim schema network > network.schema.json

    The output is JSON with or without --json; keys: $schema, title, type, properties, required, $defs.
    """
    if kind == "network":
        from circuitsim.network import NetworkSpec as model
    elif kind == "experiment":
        from circuitsim.study import ExperimentSpec as model  # type: ignore[assignment]
    elif kind == "card":
        from circuitsim.devices import DeviceCard as model  # type: ignore[assignment]
    elif kind == "sweep":
        from circuitsim.study.sweep_spec import SweepSpec as model  # type: ignore[assignment]
    else:
        raise SpecError(
            "is not a kind of file",
            field="kind",
            value=kind,
            remedy="Known: network, experiment, card, sweep.",
        )
    print_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}
    )
