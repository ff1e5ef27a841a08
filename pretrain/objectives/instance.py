"""Nuclei as teachers (UNITPathSSL, arXiv 2309.07394, stage 2, and beyond): an encoder finds them and tells them apart.

The tissue is drawn by a translator's frozen generator from masks, in fresh styles, or is real tissue with masks.
Guidance: a head on the encoder's pyramid must find the nuclei of the mask. Contrast: a nucleus and itself in another
style, stain and geometry together, all other nuclei apart (NT-Xent over RoI-pooled embeddings).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo.encoders import STRIDES
from histo.errors import InputError
from histo.guidance import guidance
from histo.maskrcnn import BOX_SIDE, TERMS, MaskRCNNSettings, pool
from histo.segmenters import Head
from pretrain import objective
from pretrain.finder import NucleusFinder
from pretrain.losses.nt_xent import nt_xent
from pretrain.nuclei import marked, seen_in_both, warp_flows
from pretrain.nucleus_crops import Drawing, NucleusCrops, open_masks
from pretrain.objective import Batch, Context, Tensors
from pretrain.projector import projector
from pretrain.views import draw_geometry, view, warp_instances
from translate.inference import open_translator
from translate.networks.comod import CoModGenerator


@dataclass
class InstanceSettings:
    """Settings of objective instance."""

    weight: float = 1.0
    """of the loss, where several objectives are combined"""
    guidance: float = 1.0
    """of finding the nuclei; 0: no head learns along"""
    contrast: float = 1.0
    """of telling nuclei apart; 0: one view of each tile is enough"""
    generated: float = 1.0
    """of tissue that the generator of --translator draws; 0: it is not needed"""
    real: float = 1.0
    """of real tissue with the masks of --data.masks tissue or watershed; 0: none is shown"""
    head: Literal["flows", "maskrcnn", "semantic"] = "flows"
    """what finds nuclei. flows: Cellpose's flows; maskrcnn: boxes and masks; semantic: nucleus or not"""
    maskrcnn: MaskRCNNSettings = field(default_factory=MaskRCNNSettings)
    pyramid_width: int = 256
    """channels of the feature pyramid"""
    nuclei: int = 16
    """nuclei of a tile that are told apart, at most"""
    width: int = 128
    """numbers of a nucleus's embedding"""
    temperature: float = 0.2
    """τ of NT-Xent"""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"instance.{name} is {getattr(self, name)}, expected a finite number above 0.")
        for name in ("guidance", "contrast", "generated", "real"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"instance.{name} is {getattr(self, name)}, expected a finite number of 0 or more.")
        for one, other in (("guidance", "contrast"), ("generated", "real")):
            if getattr(self, one) == getattr(self, other) == 0:
                raise InputError(
                    f"instance.{one} and instance.{other} are both 0, expected a weight above 0 for one at least; "
                    "without, nothing is learned."
                )
        if not 32 <= self.pyramid_width <= 1024 or self.pyramid_width % 32:
            raise InputError(
                f"instance.pyramid_width is {self.pyramid_width}, expected a multiple of 32 from 32 to 1024."
            )
        if self.nuclei < 1 or self.width < 1:
            name = "nuclei" if self.nuclei < 1 else "width"
            raise InputError(f"instance.{name} is {getattr(self, name)}, expected 1 or more.")


@dataclass
class Known:
    """The nuclei of tiles, as `histo.guidance` asks for them."""

    indices: list[int]
    instances: Tensor | None
    flows: Tensor | None


class Objective(objective.Objective):
    """Guidance and contrast on generated and on real tissue."""

    def __init__(self, context: Context) -> None:
        recipe, settings = context.recipe, context.recipe.instance
        self.context, self.settings, self.weight = context, settings, settings.weight
        encoder, data = context.encoder, recipe.data
        if len(encoder.levels) != len(STRIDES):
            raise InputError(
                f"{encoder.architecture.name} has no features of strides 4, 8, 16 and 32, expected a convolutional "
                "pyramid for objective instance, such as resnet18 or convnext_tiny; choose another."
            )
        self.domains = [name for name in ("generated", "real") if getattr(settings, name)]
        self.sides = {"real": data.view_size}
        drawing = self._open_generator() if settings.generated else None
        masks = open_masks(
            data, context.pool, drawing, recipe.seed, context.pseudo_masks, context.accelerator.is_main_process
        )
        if settings.real and masks.sources is None:
            raise InputError(
                f"instance.real is {settings.real:g}, but --data.masks {data.masks} shows no tissue, expected tissue "
                "or watershed; choose one of them, or set --instance.real 0."
            )
        self.origin = masks.origin
        head: Head = settings.head if settings.guidance else "none"
        self.crops = NucleusCrops(
            masks,
            drawing,
            data.tile_size,
            recipe.seed,
            real=bool(settings.real),
            flows=head == "flows",
            evenly=context.pool.tissue.weights is not None,
        )
        width = settings.pyramid_width
        self.finder = NucleusFinder(encoder.channels, width, head, settings.maskrcnn)
        # Not batch norm: there are more or fewer nuclei in each tile, and in each process.
        self.projector = projector([width, width, settings.width], nn.LayerNorm) if settings.contrast else None
        self.figures: Tensors = {}

    def _open_generator(self) -> Drawing:
        recipe = self.context.recipe
        if recipe.translator is None:
            raise InputError(
                f"instance.generated is {self.settings.generated:g} and no translator is named that draws tissue; give "
                "--translator RUN, or set --instance.generated 0."
            )
        translator = open_translator(Path(recipe.translator), self.context.accelerator.device)
        self.generator = translator.require_generator()
        drawing = Drawing.of(translator)
        # so that pixels of both kinds of tissue have one scale, as nearly as the encoder's strides allow
        self.sides["generated"] = max(
            32, 32 * round(recipe.data.view_size * drawing.tile_size / recipe.data.tile_size / 32)
        )
        return drawing

    def heads(self) -> dict[str, nn.Module]:
        return {"finder": self.finder} | ({"projector": self.projector} if self.projector is not None else {})

    def items(self) -> NucleusCrops:
        return self.crops

    def facts(self) -> dict[str, str]:
        found = {"masks": self.origin}
        if drawing := self.crops.drawing:
            scale = "µm/px unknown" if drawing.mpp is None else f"{drawing.mpp:g} µm/px"
            styles = "in fresh styles" if self._has_styles else "which has no styles: one picture of each mask"
            side = self.sides["generated"]
            found["generator"] = f"of {drawing.path}, {styles}; {drawing.tile_size}² px, seen at {side}², {scale}"
        return found

    @property
    def _has_styles(self) -> bool:
        return isinstance(self.generator, CoModGenerator)

    def show(self, batch: Batch) -> Tensors:
        shown = {"index": torch.tensor(batch.indices, device=batch.tiles.device)}
        for domain in self.domains:
            found = self._show(domain, batch)
            shown |= {f"{domain}_{name}": value for name, value in found.items()}
        return shown

    def _show(self, domain: str, batch: Batch) -> Tensors:
        """Views of one domain: `first`, float [N, 3, s, s], with `instances` and `flows` where the head learns from it;
        `second`, with `boxes` [N, 2, K, 4] and `valid` [N, K], where nuclei are told apart."""
        recipe, side = self.context.recipe, self.sides[domain]
        name = {"generated": "drawn", "real": "real"}[domain]
        instances = batch.pairs[f"{name}_instances"]
        shown, maps = {}, []
        for order in ("first", "second") if self.settings.contrast else ("first",):
            stream = f"instance {domain} {order} view"
            if domain == "real":
                tissue = batch.pairs["real"]
            elif order == "first" or self._has_styles:
                tissue = self._drawn(batch.pairs["drawn"], f"{stream}/style", batch.indices)
            geometry = draw_geometry(recipe.view, recipe.seed, stream, batch.indices)
            shown[order] = view(tissue, recipe.view, recipe.seed, stream, batch.indices, side)
            maps.append(warp_instances(instances, geometry, side))
            if order == "first" and self.settings.guidance:
                shown["instances"] = maps[0]
                if self.finder.head == "flows":
                    shown["flows"] = warp_flows(batch.pairs[f"{name}_flows"], geometry, side)
        if self.settings.contrast:
            shown["boxes"], shown["valid"] = seen_in_both(
                maps[0], maps[1], recipe.seed, f"instance {domain} nuclei", batch.indices, self.settings.nuclei
            )
        return shown

    def _drawn(self, masks: Tensor, stream: str, indices: list[int]) -> Tensor:
        """Tissue with the nuclei of mask images, uint8 [N, 3, T, T]: RGB levels, float32."""
        source = (masks.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        inputs: tuple[Any, ...] = ()
        if isinstance(self.generator, CoModGenerator):
            style = self.generator.style(self.context.recipe.seed, stream, indices, training=False).to(masks.device)
            inputs = (style.z, style.keep, style.noise)
        with self.context.accelerator.autocast():
            tissue = self.generator(source, *inputs)
        return ((tissue.float() + 1) * 127.5).clamp(0, 255)

    def embed(self, shown: Tensors) -> tuple[Tensors, Tensors]:
        embedded: Tensors = {}
        own: Tensors = {}
        for side in sorted({self.sides[domain] for domain in self.domains}):
            domains = [domain for domain in self.domains if self.sides[domain] == side]
            names = [
                f"{domain}_{order}"
                for domain in domains
                for order in ("first", "second")
                if f"{domain}_{order}" in shown
            ]
            count = len(shown["index"])
            pyramid = self.finder(self.context.maps(torch.cat([shown[name] for name in names])))
            rows = {name: slice(k * count, (k + 1) * count) for k, name in enumerate(names)}
            for domain in domains:
                if self.settings.guidance:
                    own |= self._guided(domain, [level[rows[f"{domain}_first"]] for level in pyramid], shown)
                if self.settings.contrast:
                    for k, order in enumerate(("first", "second")):
                        levels = [level[rows[f"{domain}_{order}"]] for level in pyramid]
                        embedded[f"{domain}_{order}"] = self._embedded(levels, shown[f"{domain}_boxes"][:, k])
                    embedded[f"{domain}_valid"] = shown[f"{domain}_valid"]
        return embedded, own

    def _guided(self, domain: str, pyramid: list[Tensor], shown: Tensors) -> Tensors:
        instances = shown[f"{domain}_instances"]
        known = Known(shown["index"].tolist(), instances, shown.get(f"{domain}_flows"))
        sight = self.finder.sight(pyramid, instances.shape[1:])
        terms = guidance(self.finder, sight, known, self.context.recipe.seed)
        return {f"{domain}_{term}": value for term, value in terms.items()}

    def _embedded(self, pyramid: list[Tensor], boxes: Tensor) -> Tensor:
        """Embeddings [N, K, D] of the nuclei in boxes [N, K, 4]; the mean over a box, since views turn it round."""
        assert self.projector is not None
        regions = pool(pyramid, list(boxes), BOX_SIDE).mean((2, 3))
        return self.projector(regions).unflatten(0, boxes.shape[:2])

    def compare(self, embedded: Tensors) -> tuple[Tensors, Tensor]:
        terms, nuclei = {}, []
        for domain in self.domains:
            first, second = self._valid(embedded, domain)
            terms[f"{domain}_contrast"] = nt_xent(first, second, self.settings.temperature)
            self._note(domain, first.detach(), second.detach(), len(embedded[f"{domain}_valid"]))
            nuclei.append(first)
        return terms, torch.cat(nuclei)

    def _valid(self, embedded: Tensors, domain: str) -> tuple[Tensor, Tensor]:
        """The embeddings of nuclei, [R, D] in the first views and in the second."""
        valid = embedded[f"{domain}_valid"]
        return embedded[f"{domain}_first"][valid], embedded[f"{domain}_second"][valid]

    def _note(self, domain: str, first: Tensor, second: Tensor, tiles: int) -> None:
        """For `scalars`: nuclei a tile, and cosines of a nucleus with itself and with others in the other view."""
        self.figures[f"{domain}_nuclei"] = torch.tensor(len(first) / tiles)
        if len(first) > 1:
            cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
            same, count = cosines.diagonal().sum(), len(first)
            self.figures[f"{domain}_same"] = same / count
            self.figures[f"{domain}_others"] = (cosines.sum() - same) / (count * (count - 1))

    def scalars(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.figures.items()}

    def weights(self) -> dict[str, float]:
        settings = self.settings
        parts = [f"/{name}" for name in TERMS] if self.finder.head == "maskrcnn" else [""]
        found = {}
        for domain in self.domains:
            share = getattr(settings, domain)
            found[f"{domain}_contrast"] = share * settings.contrast
            found |= {f"{domain}_guidance{part}": share * settings.guidance for part in parts}
        return found

    def sheets(self, batch: Batch, shown: Tensors) -> dict[str, dict[str, Tensor]]:
        pages = {}
        for domain in self.domains:
            name, title = ("drawn", "mask") if domain == "generated" else ("real", "tile")
            pages[domain] = {title: batch.pairs[name]}
            for k, order in enumerate(("first", "second")):
                if f"{domain}_{order}" in shown:
                    pages[domain][f"{order} view"] = marked(
                        shown[f"{domain}_{order}"],
                        shown.get(f"{domain}_instances") if k == 0 else None,
                        shown[f"{domain}_boxes"][:, k] if self.settings.contrast else None,
                    )
        return pages
