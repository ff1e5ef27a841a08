"""Names of the types of nuclei: those that a user gives must be in the order in which a published set numbers them."""

from collections.abc import Sequence

from histo.datasets import named_set
from histo.errors import InputError


def published_types(places: Sequence[str]) -> dict[str, Sequence[str]]:
    """The names of the types from 1 on, by set, of those published sets among places of tiles that tell them."""
    known = [named_set(place) for place in places]
    # tiles.csv, by which a copy describes itself, tells no types
    return {one.name: one.facts.nuclei for one in known if one is not None and not one.is_copy and one.facts.nuclei}


def same_types(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists are alike in order and number, whatever their case, spaces and underscores."""
    return [_bare(name) for name in one] == [_bare(name) for name in other]


def as_setting(types: Sequence[str]) -> str:
    """A list of names as the command line takes it, without quotation marks."""
    return f"[{', '.join(types)}]"


def refuse_other_types(types: Sequence[str], *named: Sequence[str] | str | None) -> None:
    """instances.types must be what the tiles' sets publish, where they do.

    Args:
        types: names as given.
        named: places of tiles, as data.tiles and data.extra take them.

    Raises:
        InputError: other names, another order or number, or sets that number their types differently.
    """
    places = [place for some in named for place in ([some] if isinstance(some, str) else some or [])]
    published = published_types(places)
    if not published:
        return
    first, *others = published
    for other in others:
        if not same_types(published[first], published[other]):
            raise InputError(
                f"{first} numbers types of nuclei as {as_setting(published[first])}, but {other} as "
                f"{as_setting(published[other])}, so one list cannot name both; name sets with the same types, or "
                "leave instances.types out."
            )
    if not same_types(types, published[first]):
        raise InputError(
            f"instances.types is {as_setting(types)}, expected the types as {first} numbers them; give "
            f"--instances.types '{as_setting(published[first])}'."
        )


def refuse_other_labels(types: Sequence[str], predictions: str, labels: str, untyped: str) -> None:
    """Predicted types must be those of the labels, where both are known: they are compared by number.

    Args:
        types: names of the predicted ones, from 1.
        predictions, labels: where they are; untyped: where the predicted maps lie without what is known of them.

    Raises:
        InputError: they differ.
    """
    for name, published in published_types([labels]).items():
        if types and not same_types(types, published):
            raise InputError(
                f"{predictions} has the types {as_setting(types)}, but {name} numbers its own as "
                f"{as_setting(published)}; predict with a network of these, or score {untyped} with --task instances, "
                "which passes over types."
            )


def _bare(name: str) -> str:
    return "".join(str(name).replace("_", " ").split()).casefold()
