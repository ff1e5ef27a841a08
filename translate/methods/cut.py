"""CUT and FastCUT (Park et al. 2020, arXiv 2007.15651): one translator, whose patches must still tell where they are.

A step:  x → G → ŷ, which D judges against y by patches; a patch of ŷ must resemble the patch of x at its place more
than other patches of x, by the features of G's own encoder (PatchNCE). With the identity term the same for y and G(y).
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from histo.errors import InputError
from histo.randomness import draws
from histo.running.updates import Update
from histo.segmenters import Reader
from translate.engine import Batch, Export, Translator
from translate.losses import refuse_weights
from translate.losses.adversarial import least_squares, least_squares_generator
from translate.losses.contrastive import patch_nce
from translate.networks.discriminators import PatchDiscriminator, PatchSettings
from translate.networks.generators import ImageGeneratorSettings, build_generator
from translate.networks.projections import PatchProjections, draw_places
from translate.networks.resnet import CUT_LAYERS, ResNetGenerator
from translate.reading import MaskReader
from translate.recipe import Recipe as SharedRecipe


@dataclass
class LossSettings:
    """Weights of the named terms (Park et al. 2020, equation 5), and what PatchNCE compares."""

    adversarial: float = 1.0
    """G's images against the discriminator (least squares)"""
    nce: float = 1.0
    """PatchNCE of x and G(x); 10 in FastCUT"""
    nce_identity: float = 1.0
    """PatchNCE of y and G(y); 0 in FastCUT, which leaves the pass out"""
    patches: int = 256
    """patches of an image that are compared, in each of five layers"""
    flip: bool = False
    """mirror every second batch on its way through G, which must not matter; used by FastCUT"""

    def __post_init__(self) -> None:
        refuse_weights(self)
        if self.patches < 2:
            raise InputError(f"loss.patches is {self.patches}, expected 2 or more: one must be told from the others.")


@dataclass
class Recipe(SharedRecipe):
    """Settings of CUT, in one direction between masks and tissue or, with data.target, between two kinds of tissue."""

    FIXED: ClassVar[tuple[str, ...]] = (*SharedRecipe.FIXED, "direction", "generator", "discriminator")

    direction: Literal["to_target", "to_source"] = "to_target"
    """to_target: from masks (or data.tissue) to tissue (or data.target); to_source: the other way"""
    generator: ImageGeneratorSettings = field(default_factory=lambda: ImageGeneratorSettings(anti_aliased=True))
    discriminator: PatchSettings = field(default_factory=PatchSettings)
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        if self.generator.kind != "resnet" or self.generator.blocks < 5:
            raise InputError(
                f"The generator is a {self.generator.kind} of {self.generator.blocks} blocks, but cut compares "
                "features up to the fifth block of a resnet; correct generator.kind or generator.blocks."
            )


class Method(Translator):
    """G (generator), its discriminator, and the projections of its features in which patches are compared."""

    TRANSLATORS = ("generator", "projections")
    JUDGES = ("discriminator",)
    AVERAGED = ("generator",)

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.settings, self.loss = recipe, recipe.loss
        self.forwards = recipe.direction == "to_target"
        super().__init__(recipe, accelerator)
        self._reader = None
        if not self.forwards and not recipe.data.between_tissues:
            self._reader = MaskReader(self.averages["generator"], recipe.data.mask_form)

    def build(self) -> dict[str, nn.Module]:
        generator = build_generator(self.settings.generator, self.tile_size)
        assert isinstance(generator, ResNetGenerator)
        return {
            "generator": generator,
            "projections": PatchProjections(generator.channels(CUT_LAYERS)),
            "discriminator": PatchDiscriminator(self.settings.discriminator.width, self.tile_size, last_stride=1),
        }

    def update(self, parts: list[Batch]) -> dict[str, Tensor]:
        """G with the projections first, then the judge on what was drawn."""
        translators = self.begin("translators", len(parts))
        drawn = [self._translate(part, translators) for part in parts]
        terms = translators.apply()
        judges = self.begin("judges", len(parts))
        for part, fake in zip(parts, drawn, strict=True):
            real = part.target if self.forwards else part.source
            with self.accelerator.autocast():
                judged = {"judge": least_squares(self.run("discriminator", real), self.run("discriminator", fake))}
            judges.add(judged, {"judge": 1.0})
        return terms | judges.apply()

    def _translate(self, batch: Batch, update: Update) -> Tensor:
        """One way for one part of the batch; returns the images drawn."""
        x, y = (batch.source, batch.target) if self.forwards else (batch.target, batch.source)
        mirrored = self.loss.flip and self.steps % 2 == 1
        with self.accelerator.autocast():
            fake, keys = self._draw(x.flip(3) if mirrored else x)
            if mirrored:
                with torch.no_grad():
                    keys = self._encoder.features(x, CUT_LAYERS)
            terms = {"adversarial": least_squares_generator(self.run("discriminator", fake))}
            if self.loss.nce > 0:
                terms["nce"] = self._nce(fake, keys, batch.indices, "patches", mirrored)
            if self.loss.nce_identity > 0:
                terms["nce_identity"] = self._nce(*self._draw(y), batch.indices, "patches of identity")
        update.add(terms, {name: getattr(self.loss, name) for name in terms})
        return fake.detach()

    def _draw(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What G draws of an image, and its encoder's features of the image on the way."""
        return self.run("generator", image, CUT_LAYERS, method="with_features")

    def _nce(
        self, drawn: Tensor, keys: list[Tensor], indices: list[int], stream: str, mirrored: bool = False
    ) -> Tensor:
        """PatchNCE of what was drawn and the features of what it was drawn of, mean over the layers.

        `mirrored`: it was drawn of the mirror image.
        """
        queries = self._encoder.features(drawn, CUT_LAYERS)
        if mirrored:
            queries = [layer.flip(3) for layer in queries]
        sizes = [(layer.shape[2], layer.shape[3]) for layer in queries]
        drawn_places = [draw_places(sizes, self.loss.patches, draws(self.seed, stream, index)) for index in indices]
        places = [torch.stack(layer) for layer in zip(*drawn_places, strict=True)]
        projections = self.networks["projections"]
        with torch.no_grad():  # the gradient goes to what was drawn alone
            expected = projections(keys, places)
        losses = [patch_nce(query, key) for query, key in zip(projections(queries, places), expected, strict=True)]
        return torch.stack(losses).mean()

    @property
    def _encoder(self) -> ResNetGenerator:
        generator = self.networks["generator"]
        assert isinstance(generator, ResNetGenerator)
        return generator

    def to_target(self, source: Tensor, stream: str, indices: list[int]) -> Tensor | None:
        return self.averages["generator"](source) if self.forwards else None

    def to_source(self, target: Tensor) -> Tensor | None:
        return None if self.forwards else self.averages["generator"](target)

    @property
    def reader(self) -> Reader | None:
        return self._reader

    def exports(self) -> list[Export]:
        name = "generator" if self.forwards else "inverse"
        return [Export(name, "generator", self.averages["generator"], asdict(self.settings.generator))]
