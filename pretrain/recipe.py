"""Settings of pretraining; presets under configs/pretrain/ change some of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from histo.errors import InputError
from histo.running.runs import RunSettings
from pretrain.objectives import NAMES
from pretrain.objectives.barlow import BarlowSettings
from pretrain.objectives.instance import InstanceSettings
from pretrain.objectives.simclr import SimCLRSettings
from pretrain.objectives.stain_invariant import StainInvariantSettings
from pretrain.online import ProbeSettings
from pretrain.pool import DataSettings
from pretrain.views import ViewSettings

PRESET = Path(__file__).parents[1] / "configs" / "pretrain" / "tiny.yaml"


@dataclass
class EncoderSettings:
    """The network that learns, and where its weights come from."""

    architecture: str | None = None
    """timm model by name; null: that of the source, else resnet18"""
    norm: Literal["own", "group"] | None = None
    """own: as the model comes (ResNets: batch norm); group: GroupNorm instead; null: that of the source, else own"""
    source: str | None = None
    """initial weights. none: random; an encoder file or foreign checkpoint; timm:NAME: the published ones, fetched
    once; null: the encoder of --translator, else none"""


@dataclass
class TrainSettings:
    """Length, batch and pace of the training; the clock is images seen over all processes."""

    images: int = 400_000
    """tiles to show, over all processes"""
    batch_size: int = 256
    """tiles a step, over all processes; each is compared with all others"""
    accumulation: int = 1
    """parts of a batch that follow each other through the encoder, to save memory; all are compared all the same, but
    an encoder's batch norm sees each part by itself"""
    checkpointing: bool = False
    """compute inner values again for the backward pass instead of keeping them: less memory, more time"""
    optimizer: Literal["lars", "adamw"] = "lars"
    """lars for large batches; adamw steadies small ones"""
    learning_rate: float | None = None
    """at its highest; null: of lars 0.3 · batch / 256 from 1024 tiles on, else 0.075 · √batch; of adamw 1e-3"""
    momentum: float = 0.9
    """of lars; AdamW's β1"""
    weight_decay: float | None = None
    """of weights alone, not of biases and norms; null: of lars 1e-6, of adamw 0.05"""
    warmup: float = 0.05
    """share of the images over which the learning rate rises; then it falls to 0 along a cosine"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the networks; weights, losses and colours stay fp32"""
    compile: bool = False
    """compile the encoder"""
    save_every: int = 20_000
    """images between checkpoints"""
    log_every: int = 1_000
    """images between scalars"""
    panel_every: int = 10_000
    """images between picture panels"""

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "accumulation", "save_every", "log_every", "panel_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected 1 or more.")
        if self.batch_size < 2:
            raise InputError(
                f"train.batch_size is {self.batch_size}, expected 2 or more: tiles are compared with each other."
            )
        if self.batch_size % self.accumulation:
            raise InputError(
                f"train.batch_size is {self.batch_size}, expected a multiple of train.accumulation "
                f"({self.accumulation}): all parts of a batch are of one size."
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < 100:
            raise InputError(f"train.learning_rate is {self.learning_rate}, expected a number in (0, 100).")
        if self.weight_decay is not None and not 0 <= self.weight_decay < 1:
            raise InputError(f"train.weight_decay is {self.weight_decay}, expected a number in [0, 1).")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected a number in [0, 1).")

    @property
    def peak_rate(self) -> float:
        """The highest learning rate (systems.md C.1: lightly's SimCLR recipe)."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer == "adamw":
            return 1e-3
        return 0.3 * self.batch_size / 256 if self.batch_size >= 1024 else 0.075 * self.batch_size**0.5

    @property
    def decay(self) -> float:
        """The weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 1e-6 if self.optimizer == "lars" else 0.05


@dataclass
class Recipe:
    """Settings of pretraining by one objective, or by several at once."""

    # What a resumed run must share with its earlier life: the shape of its networks, its data and its randomness.
    FIXED: ClassVar[tuple[str, ...]] = (
        "objective",
        "encoder",
        "translator",
        "data.tissue",
        "data.balance",
        "data.masks",
        "data.layout",
        "data.mpp",
        "data.tile_size",
        "data.view_size",
        "data.split",
        "view",
        *NAMES,
        "train.images",
        "train.batch_size",
        "train.optimizer",
        "train.precision",
        "seed",
    )

    objective: list[str] | str = "simclr"
    """what to learn by; several as [a, b], each with its own weight"""
    translator: str | None = None
    """run folder of translate/train.py: its encoder is the start, its generator draws pairs for objective instance"""
    data: DataSettings = field(default_factory=DataSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    view: ViewSettings = field(default_factory=ViewSettings)
    simclr: SimCLRSettings = field(default_factory=SimCLRSettings)
    barlow: BarlowSettings = field(default_factory=BarlowSettings)
    instance: InstanceSettings = field(default_factory=InstanceSettings)
    stain_invariant: StainInvariantSettings = field(default_factory=StainInvariantSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    """seed of everything random; the same seed on the same machine gives the same run"""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}, expected a whole number from 0 to 2^63 - 1.")

    @property
    def objectives(self) -> list[str]:
        """The objectives' names, one or several."""
        return [self.objective] if isinstance(self.objective, str) else list(self.objective)
