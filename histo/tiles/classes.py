"""Classes of tiles: their labels, or labels joined to groups."""

from collections.abc import Iterable, Sequence

from histo.datasets.breakhis import KINDS
from histo.errors import InputError

Groups = dict[str, list[str]]


def read_groups(texts: Sequence[str]) -> Groups:
    """["malignant=DC,LC", "benign=A,F"] → class → labels, as they are written.

    Raises:
        InputError: another form, or a label in two groups.
    """
    groups: Groups = {}
    for text in texts:
        name, sign, members = text.partition("=")
        labels = [member.strip() for member in members.split(",") if member.strip()]
        if not (name and sign and labels) or name in groups:
            raise InputError(f"--data.group {text!r} is no group, expected CLASS=LABEL,LABEL and every class once.")
        groups[name] = labels
    _class_of(groups)
    return groups


def resolved(groups: Groups, labels: Iterable[str]) -> Groups:
    """Groups of labels that occur: a member is the label of that name, else what BreakHis abbreviates so.

    Args:
        groups: as `read_groups` gives them.
        labels: of all tiles.

    Raises:
        InputError: a member that is no label, or a label in two groups.
    """
    known = set(labels)
    found = {}
    for name, members in groups.items():
        found[name] = [member if member in known else KINDS.get(member, member) for member in members]
        for member, label in zip(members, found[name], strict=True):
            if label not in known:
                raise InputError(
                    f"--data.group names the label {member}, which no tile has; the labels are "
                    f"{', '.join(sorted(known)) or 'none'}: correct it, or leave it out."
                )
    _class_of(found)
    return found


def grouped(labels: Sequence[str], groups: Groups, name: str) -> list[str]:
    """The class of each label; where no label is in a group, the labels themselves.

    Args:
        groups: as `resolved` gives them.
        name: of the set, for people.

    Raises:
        InputError: some labels are in groups and others are not.
    """
    class_of = _class_of(groups)
    if not class_of.keys() & set(labels):
        return list(labels)
    if left := sorted(set(labels) - class_of.keys()):
        raise InputError(f"{name} has the labels {', '.join(left)}, which no --data.group names; add them to one.")
    return [class_of[label] for label in labels]


def _class_of(groups: Groups) -> dict[str, str]:
    """Label → class; raises an InputError for a label in two groups."""
    found: dict[str, str] = {}
    for name, members in groups.items():
        for label in members:
            if found.setdefault(label, name) != name:
                raise InputError(f"--data.group puts the label {label} into two classes; leave it in one.")
    return found
