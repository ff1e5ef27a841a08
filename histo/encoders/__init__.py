"""Encoders and their files: built by name, started from wherever weights are, written for whoever loads them.

- `architectures`: timm and smp models by name, without classifier.
- `files`: encoder files, safetensors with a JSON card; `cards`: the model card in Markdown beside them.
- `sources`: `start` and `open_encoder`, encoders from files, run folders, foreign checkpoints, hub folders and timm.
- `weights`, `layouts`, `published`: what a foreign file holds and where an encoder is in it; nothing is unpickled.
- `exports`, `hub`: for timm, torchvision, smp and the Hugging Face hub.
- `comparison`: two encoders, tensor by tensor and by their features.
"""

from histo.encoders.architectures import (
    GROUP_NORM,
    STRIDES,
    Architecture,
    SmpPyramid,
    TimmPyramid,
    architecture,
    build,
    build_pyramid,
    memory_layout,
    pooled,
)
from histo.encoders.cards import data_sources
from histo.encoders.exports import write_for
from histo.encoders.files import (
    CARD_BYTES,
    CARD_FORMAT,
    card_beside,
    digest,
    load,
    read_card,
    write_card,
    write_encoder,
)
from histo.encoders.hub import write_hub
from histo.encoders.sources import Opened, Start, open_encoder, start

__all__ = [
    "CARD_BYTES",
    "CARD_FORMAT",
    "GROUP_NORM",
    "STRIDES",
    "Architecture",
    "Opened",
    "SmpPyramid",
    "Start",
    "TimmPyramid",
    "architecture",
    "build",
    "build_pyramid",
    "card_beside",
    "data_sources",
    "digest",
    "load",
    "memory_layout",
    "open_encoder",
    "pooled",
    "read_card",
    "start",
    "write_card",
    "write_encoder",
    "write_for",
    "write_hub",
]
