"""Alarms: figures of a training that, too low for too long, mean that it has gone wrong."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """When a figure of the log is a collapse: below `least` at `readings` in a row."""

    least: float
    readings: int
    meaning: str
    remedy: str


class Alarm:
    """Reads what a run logs and names a collapse once, until the figure has recovered.

    Args:
        rule_of: the rule of a figure's name, None where it has none.
        past: records of the log up to where the run stands; a resumed run warns when an undisturbed one would.
    """

    def __init__(self, rule_of: Callable[[str], Rule | None], past: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rule_of = rule_of
        self.low: Counter[str] = Counter()  # readings in a row that were too low
        for record in past:
            self(record)

    def __call__(self, values: Mapping[str, Any]) -> list[str]:
        """A sentence on each collapse that these figures complete."""
        sentences = []
        for name, value in values.items():
            rule = self.rule_of(name)
            if rule is None or not isinstance(value, (int, float)):
                continue
            self.low[name] = self.low[name] + 1 if value < rule.least else 0
            if self.low[name] == rule.readings:
                times = f" for {rule.readings} readings in a row" if rule.readings > 1 else ""
                sentences.append(f"{name} {value:.4f} is below {rule.least:g}{times}: {rule.meaning}; {rule.remedy}.")
        return sentences
