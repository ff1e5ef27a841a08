"""Guidance: what a head must find in tissue whose nuclei are known, by labels or as G rendered it from a mask."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from histo.flows import flow_loss
from histo.maskrcnn import MaskRCNNHead
from histo.segmenters import Head


class Seen(Protocol):
    """What a head saw in tiles: fields of `histo.segmenters.Reading`, which is one."""

    head: Head
    dense: Tensor | None
    pyramid: list[Tensor] | None


class Known(Protocol):
    """The nuclei of these tiles."""

    indices: list[int]
    instances: Tensor | None
    flows: Tensor | None


def guidance(finder: nn.Module, reading: Seen, batch: Known, seed: int) -> dict[str, Tensor]:
    """The terms of a finder's head, "guidance" or "guidance/PART", for its reading of tissue with a batch's nuclei.

    In translation the tissue is not detached, so the gradient teaches G to show the nuclei too.

    Args:
        finder: what read it; of head maskrcnn it has a `detector`.
    """
    if reading.head == "none":
        return {}
    assert batch.instances is not None
    if reading.head == "maskrcnn":
        assert isinstance(finder.detector, MaskRCNNHead)
        assert reading.pyramid is not None
        losses = finder.detector.losses(reading.pyramid, batch.instances, seed, batch.indices)
        return {f"guidance/{name}": loss for name, loss in losses.items()}
    assert reading.dense is not None
    foreground = batch.instances[:, None] > 0
    if reading.head == "flows":
        assert batch.flows is not None
        return {"guidance": flow_loss(reading.dense, batch.flows, foreground)}
    return {"guidance": semantic(reading.dense, foreground)}


def semantic(logits: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy of nucleus logits [N, 1, H, W] on G(x) against the foreground of x, bool [N, 1, H, W].

    UNITPathSSL's semantic guidance (SSG); G(x) is not detached, so the gradient teaches G to show the nuclei too.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), foreground.float())
