"""CycleGAN (Zhu et al. 2017, arXiv 1703.10593): two translators that undo each other, between any two domains.

A step:  x → G → ŷ → F → x again;  y → F → x̂ → G → y again;  with the identity term also G(y) ≈ y and F(x) ≈ x. D_target
judges ŷ against y, D_source judges x̂ against x, both by patches, least squares, on replayed fakes.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

from accelerate import Accelerator
from torch import Tensor, nn

from histo.running.updates import Update
from histo.segmenters import Reader
from translate.engine import Batch, Export, Translator
from translate.losses import refuse_weights
from translate.losses.adversarial import least_squares, least_squares_generator
from translate.losses.cycle import cycle
from translate.networks.discriminators import PatchDiscriminator, PatchSettings
from translate.networks.generators import ImageGeneratorSettings, build_generator
from translate.reading import MaskReader
from translate.recipe import Recipe as SharedRecipe
from translate.replay import ReplayBuffer


@dataclass
class LossSettings:
    """Weights of the named terms (Zhu et al. 2017, equation 3 and section 5.2)."""

    target_adversarial: float = 1.0
    """G's images against the discriminator of the target (least squares)"""
    source_adversarial: float = 1.0
    """F's images against the discriminator of the source"""
    cycle_source: float = 10.0
    """L1 of source → target → source"""
    cycle_target: float = 10.0
    """L1 of target → source → target"""
    identity: float = 5.0
    """L1 of G on target and of F on source, which they should leave as they are; 0 leaves the passes out"""

    def __post_init__(self) -> None:
        refuse_weights(self)


@dataclass
class Recipe(SharedRecipe):
    """Settings of CycleGAN, between masks and tissue or, with data.target, between two kinds of tissue."""

    FIXED: ClassVar[tuple[str, ...]] = (*SharedRecipe.FIXED, "generator", "discriminator")

    generator: ImageGeneratorSettings = field(default_factory=ImageGeneratorSettings)
    discriminator: PatchSettings = field(default_factory=PatchSettings)
    loss: LossSettings = field(default_factory=LossSettings)


class Method(Translator):
    """G (generator), F (inverse) and a discriminator for each domain."""

    TRANSLATORS = ("generator", "inverse")
    JUDGES = ("target_discriminator", "source_discriminator")
    AVERAGED = ("generator", "inverse")

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.settings, self.loss = recipe, recipe.loss
        super().__init__(recipe, accelerator)
        self.replays = {"replay_target": ReplayBuffer(self.seed), "replay_source": ReplayBuffer(self.seed)}
        self._reader = None
        if not recipe.data.between_tissues:
            self._reader = MaskReader(self.averages["inverse"], recipe.data.mask_form)

    def build(self) -> dict[str, nn.Module]:
        recipe, side = self.settings, self.tile_size
        return {
            "generator": build_generator(recipe.generator, side),
            "inverse": build_generator(recipe.generator, side),
            "target_discriminator": PatchDiscriminator(recipe.discriminator.width, side, last_stride=1),
            "source_discriminator": PatchDiscriminator(recipe.discriminator.width, side, last_stride=1),
        }

    def update(self, parts: list[Batch]) -> dict[str, Tensor]:
        """G and F first, then both judges on what was drawn."""
        translators = self.begin("translators", len(parts))
        drawn = [self._translate(part, translators) for part in parts]
        terms = translators.apply()
        targets, sources = (
            self.replayed(buffer, list(fakes))
            for buffer, fakes in zip(self.replays.values(), zip(*drawn, strict=True), strict=True)
        )
        judges = self.begin("judges", len(parts))
        for part, fake_target, fake_source in zip(parts, targets, sources, strict=True):
            with self.accelerator.autocast():
                losses = {
                    f"{name}_judge": least_squares(
                        self.run(f"{name}_discriminator", real), self.run(f"{name}_discriminator", fake)
                    )
                    for name, real, fake in (
                        ("target", part.target, fake_target),
                        ("source", part.source, fake_source),
                    )
                }
            judges.add(losses, dict.fromkeys(losses, 1.0))
        return terms | judges.apply()

    def _translate(self, batch: Batch, update: Update) -> tuple[Tensor, Tensor]:
        """Both ways round for one part of the batch; returns the target-like and the source-like images drawn."""
        x, y, weights = batch.source, batch.target, self.loss
        with self.accelerator.autocast():
            fake_target, fake_source = self.run("generator", x), self.run("inverse", y)
            terms = {
                "target_adversarial": least_squares_generator(self.run("target_discriminator", fake_target)),
                "source_adversarial": least_squares_generator(self.run("source_discriminator", fake_source)),
                "cycle_source": cycle(self.run("inverse", fake_target), x),
                "cycle_target": cycle(self.run("generator", fake_source), y),
            }
            if weights.identity > 0:
                terms["identity"] = cycle(self.run("generator", y), y) + cycle(self.run("inverse", x), x)
        update.add(terms, asdict(weights))
        return fake_target.detach(), fake_source.detach()

    def to_target(self, source: Tensor, stream: str, indices: list[int]) -> Tensor:
        return self.averages["generator"](source)

    def to_source(self, target: Tensor) -> Tensor:
        return self.averages["inverse"](target)

    @property
    def reader(self) -> Reader | None:
        return self._reader

    def exports(self) -> list[Export]:
        settings = asdict(self.settings.generator)
        return [Export(name, "generator", self.averages[name], settings) for name in self.AVERAGED]

    def buffers(self) -> dict[str, ReplayBuffer]:
        return self.replays
