"""All settings of a translation run in one dataclass; presets under configs/translate/ change some of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from histo.errors import InputError
from histo.running.runs import RunSettings
from histo.segmenters import SegmenterSettings
from translate.ada import AdaSettings
from translate.domains import DataSettings
from translate.losses import LossSettings
from translate.networks.comod import GeneratorSettings
from translate.networks.discriminators import DiscriminatorSettings

PRESET = Path(__file__).parents[1] / "configs" / "translate" / "tiny.yaml"

# What a resumed run must share with its earlier life: the shape of its networks, its data and its randomness.
FIXED = (
    "data.tissue",
    "data.tissue_weights",
    "data.masks",
    "data.layout",
    "data.mpp",
    "data.tile_size",
    "data.smallest_crop",
    "data.split",
    "generator",
    "segmenter",
    "discriminator",
    "ada.kind",
    "ada.probability",
    "train.batch_size",
    "train.precision",
    "seed",
)


@dataclass
class TrainSettings:
    """Length, batch and pace of the training; the clock is images seen over all processes."""

    images: int = 600_000
    """tissue tiles to show, over all processes"""
    batch_size: int = 12
    """tiles a step, over all processes"""
    learning_rate: float = 4e-4
    """of G and S (Adam, β2 0.99)"""
    judge_learning_rate: float = 4e-4
    """of both discriminators"""
    momentum: float = 0.0
    """Adam's β1; 0 as in StyleGAN2, 0.5 steadies the discriminator in batches of 8"""
    ema_images: int = 10_000
    """half-life of the averaged weights of G and S; images"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the networks; R1 and weights stay fp32"""
    compile: bool = False
    """compile G, S and D (R1 keeps using the eager D)"""
    save_every: int = 10_000
    """images between checkpoints"""
    log_every: int = 500
    """images between scalars"""
    panel_every: int = 5_000
    """images between picture panels and agreement checks"""

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "ema_images", "save_every", "log_every", "panel_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected 1 or more.")
        for name in ("learning_rate", "judge_learning_rate"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected a number in (0, 1).")
        if not 0 <= self.momentum < 1:
            raise InputError(f"train.momentum is {self.momentum}, expected a number in [0, 1).")


@dataclass
class Recipe:
    """Settings of unpaired translation between tissue and nucleus masks."""

    data: DataSettings = field(default_factory=DataSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    ada: AdaSettings = field(default_factory=AdaSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    """seed of everything random; the same seed on the same machine gives the same run"""

    def __post_init__(self) -> None:
        for name, base in (("generator", self.generator), ("discriminator", self.discriminator)):
            if base.channel_base < self.data.tile_size:
                raise InputError(
                    f"{name}.channel_base is {base.channel_base}, expected data.tile_size ({self.data.tile_size}) "
                    "or more: the layers at full resolution would have no channel."
                )
