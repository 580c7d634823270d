"""Netlists as YAML files: blocks stay blocks, nodes go by name, values in SI units."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from circuitsim.errors import CircuitsimError, NetlistError
from circuitsim.netlist.blocks import AmplifierBank, Crossbar, CurrentSense, SoftmaxLoad
from circuitsim.netlist.builder import NetlistBuilder
from circuitsim.netlist.expressions import Expression, parse_expression
from circuitsim.netlist.netlist import Netlist
from circuitsim.netlist.tables import ELEMENT_TABLES
from circuitsim.netlist.validate import validate
from circuitsim.yaml_files import read_yaml

__all__ = ["FORMAT", "netlist_document", "parse_netlist", "read_netlist", "write_netlist"]

FORMAT = "circuitsim-netlist/1"

_WIRES = ("r_wire", "r_driver", "r_sense", "drive_end", "sense_end")
# Per block type: node columns, value columns, scalars.
_BLOCKS: dict[str, tuple[type, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "crossbars": (
        Crossbar,
        ("word_pos", "word_neg", "bit"),
        ("g_plus", "g_minus", "mask"),
        ("g_min", "g_max", "trainable", "driven", "device_names", *_WIRES),
    ),
    "banks": (
        AmplifierBank,
        ("control", "out_pos", "out_neg"),
        ("gain", "saturation", "offset", "back_gain"),
        (),
    ),
    "senses": (CurrentSense, ("bit", "output"), ("gain",), ()),
    "loads": (SoftmaxLoad, ("pos", "neg"), ("target",), ("amplitude", "scale")),
}


def netlist_document(netlist: Netlist) -> dict[str, Any]:
    """Return the netlist as plain lists, numbers and names, ready for YAML or JSON."""
    name = netlist.node_names
    document: dict[str, Any] = {"format": FORMAT, "title": netlist.title, "nodes": list(name[1:])}
    elements: dict[str, Any] = {}
    for table in netlist.tables():
        if not len(table):
            continue
        rows: dict[str, Any] = {"name": list(table.name)}
        for column in table.columns():
            content = getattr(table, column.name)
            role, default = column.metadata["role"], column.metadata.get("default")
            if role == "node":
                rows[column.name] = [name[k] for k in content]
            elif role == "row":
                rows[column.name] = [getattr(netlist, column.metadata["table"]).name[k] for k in content]
            elif role == "expression":
                rows[column.name] = [e.text(name, netlist.vsource.name) for e in content]
            elif default is None or np.any(content != default):
                rows[column.name] = content.tolist()
        elements[table.kind] = rows
    document["elements"] = elements
    for key, (_, nodes, arrays, scalars) in _BLOCKS.items():
        blocks = []
        for block in getattr(netlist, key):
            item: dict[str, Any] = {"name": block.name}
            item |= {n: [name[k] for k in getattr(block, n)] for n in nodes if getattr(block, n) is not None}
            item |= {s: getattr(block, s) for s in scalars if s not in _WIRES or block.wired}
            if "device_names" in item:
                item["device_names"] = list(item["device_names"])
                if not item["device_names"]:
                    del item["device_names"]
            item |= {a: getattr(block, a).tolist() for a in arrays if getattr(block, a) is not None}
            blocks.append(item)
        if blocks:
            document[key] = blocks
    if len(netlist.inputs.source):
        document["inputs"] = {
            "source": [netlist.vsource.name[k] for k in netlist.inputs.source],
            "column": netlist.inputs.column.tolist(),
            "gain": netlist.inputs.gain.tolist(),
        }
    if len(netlist.outputs.pos):
        document["outputs"] = {
            side: [name[k] for k in getattr(netlist.outputs, side)] for side in ("pos", "neg")
        }
    if netlist.groups:
        document["groups"] = {group: [name[k] for k in nodes] for group, nodes in netlist.groups.items()}
    return document


def write_netlist(netlist: Netlist, path: Path) -> None:
    """Write a netlist as YAML; `read_netlist` gives back a circuit with the same digest."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(
        netlist_document(netlist), Dumper=dumper, sort_keys=False, default_flow_style=None, width=110
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise NetlistError(f"cannot be written: {error.strerror}", file=path) from error


def read_netlist(path: Path) -> Netlist:
    """Read a netlist written by `write_netlist`, or by hand, and check it.

    Raises:
        NetlistError: the file is missing, is not YAML, or describes no valid circuit.
    """
    return parse_netlist(read_yaml(path, error=NetlistError), file=path)


def parse_netlist(document: object, *, file: Path | None = None) -> Netlist:
    """Build a netlist from what `netlist_document` returns.

    Raises:
        NetlistError: naming the file, the element and the key at fault.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise NetlistError(f"is not a netlist: `format: {FORMAT}` is missing", file=file)
    known = {"format", "title", "nodes", "elements", "inputs", "outputs", "groups", *_BLOCKS}
    where = "document"

    def refuse_unknown(keys: Iterable[Any], known: Collection[str], owner: str | None = None) -> None:
        for key in keys:
            if key not in known:
                remedy = f"Known: {', '.join(sorted(known))}."
                raise NetlistError("unknown key", file=file, object=owner, field=str(key), remedy=remedy)

    refuse_unknown(document, known)
    try:
        builder = NetlistBuilder(str(document.get("title", "circuit")))
        refuse_unknown(document.get("elements", {}), {t.kind for t in ELEMENT_TABLES}, "elements")
        declared = [str(node) for node in document.get("nodes", ())]
        for node in declared:
            builder.node(node)
        for table in ELEMENT_TABLES:
            rows = document.get("elements", {}).get(table.kind)
            if rows is None:
                continue
            where = f"elements.{table.kind}"
            refuse_unknown(rows, {"name", *(column.name for column in table.columns())}, where)
            labels = [str(label) for label in rows["name"]]
            columns: dict[str, Any] = {}
            for column in table.columns():
                if column.metadata.get("default") is not None and column.name not in rows:
                    continue
                cells = rows[column.name]
                if len(cells) != len(labels):
                    raise NetlistError(
                        f"has {len(cells)} entries for {len(labels)} names",
                        file=file,
                        object=where,
                        field=column.name,
                    )
                role = column.metadata["role"]
                if role == "node":
                    columns[column.name] = builder.nodes(str(cell) for cell in cells)
                elif role == "row":
                    columns[column.name] = builder.rows_of(
                        column.metadata["table"], (str(cell) for cell in cells)
                    )
                elif role == "expression":
                    columns[column.name] = [_expression(str(cell), builder) for cell in cells]
                else:
                    columns[column.name] = np.array(cells, dtype=np.float64)
            builder.add_rows(table.kind, labels, **columns)
        for key, (block_type, nodes, arrays, scalars) in _BLOCKS.items():
            add = getattr(
                builder, {"crossbars": "crossbar", "banks": "bank", "senses": "sense", "loads": "load"}[key]
            )
            for number, item in enumerate(document.get(key, ())):
                where = f"{key}[{number}]"
                refuse_unknown(item, {"name", *nodes, *arrays, *scalars}, where)
                fields: dict[str, Any] = {"name": str(item["name"])}
                fields |= {n: builder.nodes(str(k) for k in item[n]) for n in nodes if n in item}
                fields |= {a: np.array(item[a]) for a in arrays if a in item}
                fields |= {s: _scalar(s, item[s]) for s in scalars if s in item}
                add(block_type(**fields))
        where = "groups"
        for name, group in document.get("groups", {}).items():
            builder.group(str(name), builder.nodes(str(node) for node in group))
        where = "outputs"
        if "outputs" in document:
            ports = document["outputs"]
            refuse_unknown(ports, {"pos", "neg"}, where)
            builder.outputs(*(builder.nodes(str(node) for node in ports[side]) for side in ("pos", "neg")))
        where = "inputs"
        if "inputs" in document:
            ports = document["inputs"]
            refuse_unknown(ports, {"source", "column", "gain"}, where)
            builder.inputs([str(s) for s in ports["source"]], ports["column"], ports["gain"])
        netlist = builder.build(check=False)
    except CircuitsimError as error:
        if error.file:
            raise
        raise NetlistError(str(error), file=file, object=where) from error
    except KeyError as error:
        raise NetlistError(f"key or name {error} is missing", file=file, object=where) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NetlistError(f"is malformed: {error}", file=file, object=where) from error
    for node in netlist.node_names[1 + len(declared) :] if declared else ():
        raise NetlistError("is a node that `nodes` does not list", file=file, value=node)
    try:
        validate(netlist)
    except NetlistError as error:
        raise NetlistError(str(error), file=file) from error
    return netlist


def _expression(text: str, builder: NetlistBuilder) -> Expression:
    return parse_expression(
        text, node=builder.node, source=lambda name: int(builder.rows_of("vsource", [name])[0])
    )


def _scalar(name: str, value: Any) -> float | bool | str | tuple[str, ...]:
    if name == "device_names":
        return tuple(str(device) for device in value)
    if name in ("drive_end", "sense_end"):
        return str(value)
    if name not in ("trainable", "driven"):
        return float(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, not {value!r}")
    return value
