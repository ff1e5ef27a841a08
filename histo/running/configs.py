"""YAML files as data. A config holds plain values; whatever else YAML can do is refused before anything is built."""

from pathlib import Path
from typing import Any

import yaml

from histo.errors import InputError

# The largest config we know has 2 kB and 3 levels. Aliases let a few lines stand for billions of values.
MAX_BYTES = 100_000
MAX_DEPTH = 20


def read_config(path: Path) -> Any:
    """What a YAML file of plain values holds: mappings, lists, texts, numbers, true, false, null.

    Raises:
        OSError: no file that can be read.
        InputError: larger than `MAX_BYTES`, nested deeper than `MAX_DEPTH`, no YAML, or with a tag, an anchor, an
            alias, or a key given twice.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"Config {path} is larger than {MAX_BYTES:,} bytes; give a YAML file of settings only.")
    try:
        text = content.decode("utf-8")
        _refuse_more_than_values(text)
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, impossible dates and numbers
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(
            f"Config {path} is no valid YAML of plain values{place} ({reason}); expected `group: {{key: value}}`."
        ) from error


def _refuse_more_than_values(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        found = (
            (isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None), "an anchor or alias"),
            (getattr(event, "tag", None), "a tag"),
            (depth > MAX_DEPTH, f"more than {MAX_DEPTH} levels"),
        )
        for present, what in found:
            if present:
                raise ValueError(f"line {_line(event)} has {what}")


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_repeated_keys(entry)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(f"line {_line(key)} gives {key.value} a second time")
                seen.add(key.value)
            _refuse_repeated_keys(value)


def _line(place: yaml.Event | yaml.Node) -> int:
    assert place.start_mark is not None
    return place.start_mark.line + 1
