"""Classes of tiles: their labels, or labels joined to groups."""

from collections.abc import Sequence

from histo.datasets.breakhis import KINDS
from histo.errors import InputError

Groups = dict[str, list[str]]


def read_groups(texts: Sequence[str]) -> Groups:
    """["malignant=DC,LC", "benign=A,F"] → class → labels; BreakHis' own abbreviations stand for its labels.

    Raises:
        InputError: another form, or a label in two groups.
    """
    groups: Groups = {}
    for text in texts:
        name, sign, members = text.partition("=")
        labels = [KINDS.get(member.strip(), member.strip()) for member in members.split(",") if member.strip()]
        if not (name and sign and labels) or name in groups:
            raise InputError(f"--data.group {text!r} is no group, expected CLASS=LABEL,LABEL and every class once.")
        for label in labels:
            if any(label in others for others in groups.values()):
                raise InputError(f"--data.group puts the label {label} into two classes; leave it in one.")
        groups[name] = labels
    return groups


def grouped(labels: Sequence[str], groups: Groups, name: str) -> list[str]:
    """The class of each label; where no label is in a group, the labels themselves.

    Args:
        name: of the set, for people.

    Raises:
        InputError: some labels are in groups and others are not.
    """
    class_of = {label: group for group, members in groups.items() for label in members}
    if not class_of.keys() & set(labels):
        return list(labels)
    if left := sorted(set(labels) - class_of.keys()):
        raise InputError(f"{name} has the labels {', '.join(left)}, which no --data.group names; add them to one.")
    return [class_of[label] for label in labels]
