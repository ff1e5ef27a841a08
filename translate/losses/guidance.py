"""Guidance: what S must find in tissue that G rendered from a known mask."""

from torch import Tensor, nn
from torch.nn import functional as F

from histo.flows import flow_loss
from histo.segmenters import Reading, Segmenter
from translate.engine import Batch


def guidance(segmenter: nn.Module, reading: Reading, batch: Batch, seed: int) -> dict[str, Tensor]:
    """The terms of S's head, "guidance" or "guidance/PART", for its reading of the tissue drawn from a batch's masks.

    The tissue is not detached, so the gradient teaches G to show the nuclei too.
    """
    if reading.head == "none":
        return {}
    assert batch.instances is not None
    if reading.head == "maskrcnn":
        assert isinstance(segmenter, Segmenter)
        assert reading.pyramid is not None
        losses = segmenter.detector.losses(reading.pyramid, batch.instances, seed, batch.indices)
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
