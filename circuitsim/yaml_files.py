"""Reading YAML so that every fault is ours to report: missing, unreadable, malformed, a key given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from circuitsim.errors import CircuitsimError, SpecError

__all__ = ["read_yaml"]


def read_yaml(path: str | Path, *, error: type[CircuitsimError] = SpecError) -> Any:
    """Return what a YAML file holds.

    Raises:
        CircuitsimError: of the type ``error``: the file is missing, unreadable, or not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"cannot be read: {failure.strerror}", file=path) from failure
    except UnicodeDecodeError as failure:
        raise error("is not a text file", file=path, remedy="A YAML file was expected.") from failure
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as failure:
        raise error(f"is not YAML: {' '.join(str(failure).split())}", file=path) from failure
    except (ValueError, KeyError, AttributeError, RecursionError) as failure:
        # PyYAML lets through what its constructors raise at an impossible date or a number too long.
        raise error(f"is not YAML: it holds a value that cannot be read: {failure}", file=path) from failure


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML lets a later key silently replace an earlier one: refuse that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return dict(super().construct_mapping(node, deep))
