"""The settings that all methods of translation share; presets under configs/translate/ change some of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from histo.errors import InputError
from histo.running import runs
from translate.domains import DataSettings

PRESET = Path(__file__).parents[1] / "configs" / "translate" / "tiny.yaml"
STAGE_RATES = {1: 4e-4, 2: 1e-4}  # of UNITPathSSL


@dataclass
class RunSettings(runs.RunSettings):
    """Where a run lives and how it starts."""

    init: str | None = None
    """run folder or checkpoint whose networks a new run starts from; a run that resumes has its own"""
    stage: Literal[1, 2] = 1
    """2: of the networks of --run.init keep only those that draw and judge tissue, and learn to read it afresh"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage == 2 and self.init is None:
            raise InputError("run.stage is 2 without --run.init, expected the run of the first stage there; name it.")


@dataclass
class TrainSettings:
    """Length, batch and pace of the training; the clock is images seen over all processes."""

    images: int = 600_000
    """tissue tiles to show, over all processes"""
    batch_size: int = 12
    """tiles a step, over all processes"""
    accumulation: int = 1
    """parts of a batch that follow each other through the networks, to save memory"""
    checkpointing: bool = False
    """compute the networks' inner values again for the backward pass instead of keeping them: less memory, more time"""
    learning_rate: float | None = None
    """of the translating networks (Adam); null: 4e-4, in stage 2 1e-4"""
    judge_learning_rate: float | None = None
    """of the discriminators; null: 4e-4, in stage 2 1e-4"""
    decay_from: float = 1.0
    """share of the images after which the learning rates fall to 0 along a line; 1: never"""
    momentum: float = 0.0
    """Adam's β1; 0 as in StyleGAN2, 0.5 steadies the discriminator in batches of 8"""
    beta2: float = 0.99
    """Adam's β2"""
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
        for name in ("images", "batch_size", "accumulation", "ema_images", "save_every", "log_every", "panel_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected 1 or more.")
        for name in ("learning_rate", "judge_learning_rate"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected a number in (0, 1).")
        for name in ("momentum", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected a number in [0, 1).")
        if not 0 <= self.decay_from <= 1:
            raise InputError(f"train.decay_from is {self.decay_from}, expected a share in [0, 1].")
        if self.batch_size % self.accumulation:
            raise InputError(
                f"train.batch_size is {self.batch_size}, expected a multiple of train.accumulation "
                f"({self.accumulation}): all parts of a batch are of one size."
            )


@dataclass
class TrainingScores:
    """Scores of what the averaged networks draw, taken while they train; without them no checkpoint is called best."""

    every: int = 0
    """images between scores, each saved with a checkpoint; 0: never"""
    features: str = "timm:resnet18"
    """what FID and KID compare: inception, timm:NAME, or an encoder file, as of translate/score.py"""
    weights: str | None = None
    """state dict for inception or timm:NAME; null: timm:NAME has random weights. Nothing is fetched"""
    images: int = 512
    """tiles drawn, and real crops beside them; FID is left out where there are more features than images"""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(f"scores.every is {self.every}, expected 0 for never, or a number of images.")
        if self.images < 4:
            raise InputError(f"scores.images is {self.images}, expected 4 or more.")
        if self.every and self.features == "inception" and self.weights is None:
            raise InputError(
                "scores.features is inception without scores.weights, expected their file, since nothing is fetched "
                "while training; name it, or choose timm:NAME or an encoder file."
            )


@dataclass
class Recipe:
    """Settings of unpaired translation by one method."""

    # What a resumed run must share with its earlier life: the shape of its networks, its data and its randomness.
    FIXED: ClassVar[tuple[str, ...]] = (
        "method",
        "data.tissue",
        "data.target",
        "data.tissue_weights",
        "data.masks",
        "data.mask_form",
        "data.layout",
        "data.cellpose.model",
        "data.cellpose.nucleus",
        "data.cellpose.diameter",
        "data.cellpose.flow_threshold",
        "data.cellpose.cellprob_threshold",
        "data.cellpose.stain",
        "data.cellpose.precision",
        "data.mpp",
        "data.tile_size",
        "data.smallest_crop",
        "data.split",
        "train.batch_size",
        "train.precision",
        "seed",
    )

    method: str = "unitpath"
    """how to translate: unitpath, cyclegan or cut; its own settings follow from it"""
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run: RunSettings = field(default_factory=RunSettings)
    scores: TrainingScores = field(default_factory=TrainingScores)
    seed: int = 0
    """seed of everything random; the same seed on the same machine gives the same run"""

    def learning_rate(self, asked: float | None) -> float:
        """A learning rate, or the stage's own where none is asked for."""
        return STAGE_RATES[self.run.stage] if asked is None else asked
