"""Settings of downstream training; presets under configs/downstream/ change some of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from downstream.bags import BagSettings
from downstream.labelled import DataSettings
from downstream.linear import KnnSettings, LinearSettings
from downstream.tasks import NAMES
from downstream.tasks.classify import ClassifySettings
from downstream.tasks.instances import InstancesSettings
from downstream.tasks.segment import SegmentSettings
from downstream.tasks.smse import SmseSettings
from histo.errors import InputError
from histo.running.runs import RunSettings

PRESET = Path(__file__).parents[1] / "configs" / "downstream" / "instances.yaml"


@dataclass
class EncoderSettings:
    """The encoder that the task builds on."""

    source: str = "none"
    """encoder file, run folder or foreign checkpoint; timm:NAME: the published weights, fetched once; none: random"""
    architecture: str | None = None
    """timm model by name; null: that of the source, else resnet18"""
    norm: Literal["own", "group"] | None = None
    """own: as the model comes (ResNets: batch norm); group: GroupNorm instead; null: that of the source, else own"""
    frozen: bool = False
    """leave its weights as they are"""


@dataclass
class CropSettings:
    """What is cut from tiles, and how it is changed before it is learned from."""

    size: int = 256
    """side of the square crops; pixels, a multiple of 32"""
    mpp: float | None = None
    """µm/px that crops have and that images are read at, which brings tiles of several scales to one; null: their own;
    maps are given back at the µm/px of the image"""
    smallest: float = 0.8
    """crops have a side of this share to 1 of their size before they are resized"""
    stain: float = 0.2
    """haematoxylin and eosin of a crop are multiplied by 1 ± so much, and shifted by half of it; 0: never"""

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 1024 or self.size % 32:
            raise InputError(f"crop.size is {self.size}, expected a multiple of 32 from 32 to 1024 pixels.")
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"crop.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")
        if not 0.1 <= self.smallest <= 1:
            raise InputError(f"crop.smallest is {self.smallest}, expected a share between 0.1 and 1.")
        if not 0 <= self.stain < 1:
            raise InputError(f"crop.stain is {self.stain}, expected a share from 0 to below 1.")


@dataclass
class TrainSettings:
    """Length, batch and pace of the training; the clock is crops seen over all processes."""

    images: int = 20_000
    """crops to show, over all processes"""
    batch_size: int = 8
    """crops a step, over all processes"""
    learning_rate: float = 1e-3
    """of AdamW, at its highest"""
    encoder_rate: float = 1.0
    """learning rate of the encoder, as a share of the others'"""
    layer_decay: float = 1.0
    """of tasks classify and smse: each layer of the encoder learns at this share of the rate of the one above it"""
    weight_decay: float = 0.01
    """of weights alone, not of biases and norms"""
    warmup: float = 0.05
    """share of the crops over which the learning rate rises; then it falls to 0 along a cosine"""
    average: float = 0.99
    """what is scored and exported are running means of the weights, which keep this share at every step; 0: none"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the network; weights and losses stay fp32"""
    save_every: int = 4_000
    """crops between checkpoints"""
    log_every: int = 400
    """crops between scalars"""
    look_every: int = 4_000
    """crops between pictures, and between scores of the validation part"""

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "save_every", "log_every", "look_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected 1 or more.")
        if not 0 < self.learning_rate < 10:
            raise InputError(f"train.learning_rate is {self.learning_rate}, expected a number in (0, 10).")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"train.layer_decay is {self.layer_decay}, expected a share above 0, at most 1.")
        for name in ("warmup", "average", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}, expected a number in [0, 1).")
        if not 0 <= self.encoder_rate <= 1:
            raise InputError(f"train.encoder_rate is {self.encoder_rate}, expected a share from 0 to 1.")


@dataclass
class Recipe:
    """Settings of learning a task from labelled tiles."""

    # What a resumed run must share with its earlier life.
    FIXED: ClassVar[tuple[str, ...]] = (
        "task",
        "encoder",
        "data.tiles",
        "data.group",
        "data.split",
        "data.validation",
        "data.validation_share",
        "data.holdout",
        "data.extra",
        "data.extra_split",
        "data.extra_share",
        "data.folds",
        "data.label_fraction",
        "data.label_images",
        "data.common_patients",
        "data.mpp",
        "data.on_bad",
        "crop",
        *NAMES,
        "linear",
        "knn",
        "mil",
        "train.images",
        "train.batch_size",
        "train.learning_rate",
        "train.encoder_rate",
        "train.layer_decay",
        "train.weight_decay",
        "train.warmup",
        "train.average",
        "train.precision",
        "seeds",
    )

    task: Literal["classify", "instances", "knn", "linear", "mil", "segment", "smse"] = "instances"
    """what to learn"""
    data: DataSettings = field(default_factory=DataSettings)
    crop: CropSettings = field(default_factory=CropSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    instances: InstancesSettings = field(default_factory=InstancesSettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    smse: SmseSettings = field(default_factory=SmseSettings)
    linear: LinearSettings = field(default_factory=LinearSettings)
    knn: KnnSettings = field(default_factory=KnnSettings)
    mil: BagSettings = field(default_factory=BagSettings)
    features: str | None = None
    """of tasks linear, knn and mil: folder where the encoder's features are kept; null: features/ in the run"""
    train: TrainSettings = field(default_factory=TrainSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seeds: list[int] = field(default_factory=lambda: [0])
    """one training each: of the labels that are used, of folds, and of everything random"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**63 for s in self.seeds):
            raise InputError(f"seeds is {self.seeds}, expected different whole numbers from 0.")
        if self.task in ("linear", "knn", "classify") and self.crop.mpp is not None:
            raise InputError(
                f"crop.mpp is {self.crop.mpp}, but task {self.task} judges whole tiles resized to crop.size pixels; "
                "leave crop.mpp out."
            )
        if self.run.resume not in ("auto", "never"):
            raise InputError(
                f"run.resume is {self.run.resume!r}, but every seed and fold continues its own newest checkpoint; give "
                "auto or never."
            )
        loss, weights = self.classify.loss, self.classify.weights
        if self.task in ("knn", "mil") and (loss, weights) != ("cross_entropy", "none"):
            raise InputError(
                f"classify.loss is {loss} and classify.weights {weights}, which task {self.task} does not go by; leave "
                "them out, or choose --task linear."
            )
        if self.task == "knn" and self.data.validation is not None:
            raise InputError(
                f"data.validation is {self.data.validation!r}, but task knn has nothing to choose by it; leave it out."
            )
        if self.task in ("linear", "knn", "mil") and self.data.extra is not None:
            raise InputError(
                f"data.extra is {self.data.extra}, but task {self.task} learns from the features of data.tiles alone; "
                "leave it out, or choose --task classify."
            )
