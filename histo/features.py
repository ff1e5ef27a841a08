"""Feature extractors: images in, one vector each, and the facts without which a number made of them means nothing.

FID and KID of the same images differ with the network, its weights, the resize rule and the number of images
(Parmar et al., CVPR 2022, arXiv 2104.11222). So an `Extractor` carries its name, the hash of its weights and its resize
rule, and every image goes through that one rule, whatever its size.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo import encoders
from histo.encoders import digest, pooled
from histo.encoders.weights import fill, read_state_dict
from histo.errors import InputError

INCEPTION_SIDE = 299  # pixels (Szegedy et al., CVPR 2016)
LARGEST_SIDE = 2048  # pixels; an extractor's side comes from a card or a library's table


@dataclass(frozen=True)
class Extractor:
    """A frozen network from images to features.

    name: as it was asked for.
    origin: where its weights come from, for people.
    side: every image is resized to side x side pixels, bilinearly with antialias, in floating point, whatever its
        aspect.
    mean, std: of each channel, subtracted and divided by after scaling to [0, 1].
    width: number of features.
    sha256: of its weights, see `digest`.
    precision: bf16 or fp32 arithmetic of the network.
    """

    network: nn.Module
    name: str
    origin: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    sha256: str
    precision: str

    @property
    def facts(self) -> dict[str, Any]:
        """What has to stand beside a number made of these features, as JSON can hold it."""
        return {
            "extractor": self.name,
            "weights": self.origin,
            "weights_sha256": self.sha256,
            "features": self.width,
            "resize": f"bilinear, antialias, to {self.side} x {self.side} px",
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
        }

    @torch.no_grad()
    def __call__(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """The features of one batch, which is as much as is held at a time.

        Args:
            images: uint8 [N, 3, H, W] RGB, or uint8 [3, H, W] of several sizes.

        Returns:
            float32 [N, width] on the CPU.
        """
        if isinstance(images, Tensor):
            batch = self.prepare(images)
        else:
            batch = torch.cat([self.prepare(image[None]) for image in images])
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = pooled(self.network(batch))
        return features.float().cpu()

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] → float32 [N, 3, side, side] as the network expects it, on its device."""
        device = next(self.network.parameters()).device
        scaled = images.to(device).float() / 255
        if images.shape[2:] != (self.side, self.side):
            scaled = F.interpolate(
                scaled, size=(self.side, self.side), mode="bilinear", align_corners=False, antialias=True
            )
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std


def open_extractor(
    name: str,
    *,
    weights: Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Extractor:
    """A feature extractor by name.

    Args:
        name: "inception": torchvision's Inception v3, 2048 pooled features. Its weights are not those of the network
            ported from TensorFlow that torch-fidelity, clean-fid and torchmetrics' default use: FID values of the two
            do not compare. "timm:NAME": any timm model, pooled, without classifier. Or the path of an encoder file.
        weights: state dict for "inception" or "timm:NAME", .safetensors, or .pth, of which only tensors are read.
        download: fetch the library's own weights; without this nothing is fetched.
        seed: of the random weights that a timm model has with neither `weights` nor `download`.
        precision: bf16 or fp32.

    Raises:
        InputError: unknown name, missing, damaged or unfitting weights, weights named twice, a failed download.
    """
    if weights is not None and download:
        raise InputError(f"--weights {weights} and --download both name weights; give one of them.")
    if name == "inception":
        network, origin, side, mean, std = _inception(weights, download)
    elif name.endswith(".safetensors") or Path(name).is_file():
        if weights is not None or download:
            raise InputError(f"{name} is an encoder file and holds its weights; leave --weights and --download out.")
        network, origin, side, mean, std = _encoder_file(Path(name))
    elif name.startswith("timm:"):
        network, origin, side, mean, std = _timm(name, weights, download, seed)
    else:
        raise InputError(
            f"There are no features {name!r}; expected inception, timm:NAME, or the path of an encoder file "
            "(.safetensors)."
        )
    network = network.requires_grad_(False).eval()
    with torch.no_grad():
        output = pooled(network(torch.zeros(1, 3, side, side)))
    return Extractor(
        network.to(device), name, origin, side, mean, std, output.shape[1], digest(network.state_dict()), precision
    )


_Found = tuple[nn.Module, str, int, tuple[float, ...], tuple[float, ...]]  # network, origin, side, mean, std


def _inception(weights: Path | None, download: bool) -> _Found:
    if weights is None and not download:
        raise InputError(
            "--features inception needs weights, and none were named: give --weights FILE (torchvision's "
            "inception_v3), allow --download, or choose --features timm:NAME or an encoder file."
        )
    from torchvision.models import Inception_V3_Weights, inception_v3  # imported here: few runs need it

    network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    network.fc = nn.Identity()
    if weights is not None:
        tensors, origin = read_state_dict(weights), weights.name
    else:
        with _downloading("torchvision's inception_v3"):
            tensors = dict(
                Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True, weights_only=True)
            )
        origin = "torchvision IMAGENET1K_V1"
    _fill(network, tensors, ("fc", "AuxLogits"), weights or Path(origin), "torchvision's inception_v3")
    # The published weights expect [-1, 1]; torchvision turns ImageNet's scaling into it inside the network.
    return network, origin, INCEPTION_SIDE, (0.5,) * 3, (0.5,) * 3


def _timm(name: str, weights: Path | None, download: bool, seed: int) -> _Found:
    wanted = encoders.architecture(name, "own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # timm draws initial weights from the global generator, which is put back
        network = encoders.build(wanted)
    known: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    origin = f"random, seed {seed}"
    if weights is not None:
        classifier = known.get("classifier") or ()
        heads = [classifier] if isinstance(classifier, str) else classifier
        _fill(network, read_state_dict(weights), heads, weights, wanted.name)
        origin = weights.name
    elif download:
        with _downloading(f"timm's {wanted.name}"):
            network = timm.create_model(wanted.name, pretrained=True, num_classes=0)
        known = network.pretrained_cfg  # type: ignore[assignment]
        tag = known.get("tag")
        origin = f"timm {wanted.name}" + (f".{tag}" if tag else "")
    return network, origin, int(known["input_size"][-1]), tuple(known["mean"]), tuple(known["std"])


def _encoder_file(path: Path) -> _Found:
    network, card = encoders.load(path)
    side = card.get("tile_size")
    if type(side) is not int or not 32 <= side <= LARGEST_SIDE:
        raise InputError(
            f"The card of {path} has tile_size {side!r}, expected 32 to {LARGEST_SIDE} pixels; export it again."
        )
    scaling = [_three_numbers(path, card, what) for what in ("mean", "std")]
    return network, "the file's own", side, scaling[0], scaling[1]


def _three_numbers(path: Path, card: dict[str, Any], what: str) -> tuple[float, ...]:
    values = card.get(what)
    if not (isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)):
        raise InputError(f"The card of {path} has {what} {str(values)[:60]}, expected 3 numbers; export it again.")
    if what == "std" and min(values) <= 0:
        raise InputError(f"The card of {path} has std {values}, expected numbers above 0; export it again.")
    return tuple(values)


def _fill(network: nn.Module, tensors: dict[str, Tensor], heads: Sequence[str], path: Path, what: str) -> None:
    """Load weights whose keys are the network's, but for those of heads that it goes without."""
    kept = {key: value for key, value in tensors.items() if not any(key.startswith(f"{head}.") for head in heads)}
    fill(network, kept, path, what, "name the weights of that network.")


@contextmanager
def _downloading(what: str) -> Iterator[None]:
    """Any way in which a download fails, as one sentence."""
    try:
        yield
    except Exception as error:  # each library, and each of its network layers, raises its own
        reason = str(error).partition("\n")[0][:120]
        raise InputError(
            f"The weights of {what} cannot be downloaded ({reason}); fetch them elsewhere and give --weights FILE."
        ) from error
