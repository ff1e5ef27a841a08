"""The ten-seed protocol of CAMELYON17-WILDS: pretrain, then read tumour off frozen features in a hospital never seen.

    python pretrain/wilds.py --tissue camelyon17_wilds:PATH --out runs/wilds10

For every seed an encoder is pretrained on the patches of hospitals 0, 3 and 4 without labels (pretrain/train.py), and a
linear layer is trained on its features of the same patches with labels. Its penalty is the one with the best accuracy
in hospital 1 (val); what counts is its accuracy in hospital 2 (test). Seeds that are done are not run again, so several
machines can take some each (--seeds [0, 1]) and the last call makes the table.
"""

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    from torch import Tensor

    from histo import encoders
    from histo.errors import InputError, writing
    from histo.files import written_whole
    from histo.probes import embed, fit_linear
    from histo.probes.linear import PENALTIES
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.tiles import TileSet, open_tiles
    from histo.tiles.batches import image_batches
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "id_val", "val", "test")
BATCH = 256


@dataclass
class WildsSettings:
    """What to pretrain on, how, and how often."""

    tissue: str | None = None
    """the patches: camelyon17_wilds:PATH, or tiles whose splits are train, id_val, val and test"""
    recipe: list[str] = field(default_factory=lambda: [str(ROOT / "configs" / "pretrain" / "wilds10.yaml")])
    """configs of the pretraining; later ones win, such as one of configs/pretrain/baselines"""
    seeds: list[int] = field(default_factory=lambda: list(range(10)))
    """seeds of the pretraining; WILDS asks for ten"""
    out: str = "runs/wilds10"
    """folder of one run folder per seed and of wilds.json"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"--seeds is {self.seeds}, expected one or more different numbers from 0.")


def main(argv: list[str]) -> None:
    """Read the command line; pretrain and probe what is not done yet; write and print the table."""
    request = read_settings(WildsSettings, "pretrain/wilds.py", "Ten seeds of CAMELYON17-WILDS.", argv)
    settings = request.settings
    if settings.tissue is None:
        raise InputError("--tissue is missing, expected camelyon17_wilds:PATH; docs/wilds.md says where to get it.")
    tiles = open_tiles(settings.tissue)
    labelled = Labelled(tiles)
    if request.dry_run:
        print(as_yaml(settings))
        print("dry run: settings and patches are sound.")
        return
    results = {}
    for seed in settings.seeds:
        run = Path(settings.out) / f"seed_{seed}"
        encoder = run / "export" / "encoder.safetensors"
        if not encoder.is_file():
            _pretrain(settings, seed, run)
        results[seed] = _probed(encoder, labelled, run / "wilds.json")
        print(_line(f"seed {seed}", results[seed]), flush=True)
    content: dict[str, Any] = {
        "tissue": tiles.describe(),
        "patches": {split: len(labelled.positions[split]) for split in SPLITS},
        "recipe": settings.recipe,
        "protocol": "linear probe on frozen features, penalty chosen in val, accuracy",
        "seeds": results,
        "mean": {split: float(np.mean([found[split] for found in results.values()])) for split in SPLITS},
        "sd": {split: _deviation([found[split] for found in results.values()]) for split in SPLITS},
    }
    path = Path(settings.out) / "wilds.json"
    with writing(path), written_whole(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    print(_line(f"mean of {len(results)}", content["mean"]) + "\n" + _line("sd", content["sd"]) + f"\nTable: {path}")


class Labelled:
    """The patches by split, and whether each shows tumour.

    Raises:
        InputError: a split or a label that is missing, or not two classes.
    """

    def __init__(self, tiles: TileSet) -> None:
        self.tiles = tiles
        splits, labels = tiles.entries.facts("split"), tiles.entries.facts("label")
        self.positions = {split: splits.among(split) for split in SPLITS}
        if missing := [split for split in SPLITS if not len(self.positions[split])]:
            raise InputError(f"--tissue has no tile of split {missing[0]}, expected {', '.join(SPLITS)}; see --help.")
        classes = sorted(map(str, labels.values))
        if len(classes) != 2 or None in labels.values:
            raise InputError(f"--tissue has the labels {', '.join(classes)}, expected two classes; see --help.")
        self.truth = torch.tensor([classes.index(value) for value in labels.values])[labels.codes.astype(np.int64)]

    def features(self, encoder: Path, split: str) -> Tensor:
        """float32 [N, D], in the order of `positions`."""
        model, card = encoders.load(str(encoder))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device)
        places = self.positions[split]
        order = [places[start : start + BATCH].tolist() for start in range(0, len(places), BATCH)]
        found = [
            embed(model, images, card["mean"], card["std"], device, BATCH)
            for images in image_batches(self.tiles, order)
        ]
        return torch.cat(found)


def _pretrain(settings: WildsSettings, seed: int, run: Path) -> None:
    """Run pretrain/train.py to its end, from where it stands; what it says goes to where this script's goes."""
    configs = [text for path in settings.recipe for text in ("--config", path)]
    command = [sys.executable, str(ROOT / "pretrain" / "train.py"), *configs, "--data.tissue", str(settings.tissue)]
    code = subprocess.run([*command, "--seed", str(seed), "--run.dir", str(run)], check=False).returncode
    if code or not (run / "export" / "encoder.safetensors").is_file():
        raise InputError(f"The pretraining of seed {seed} did not end; see above, then give the same command again.")


def _probed(encoder: Path, labelled: Labelled, path: Path) -> dict[str, Any]:
    """Accuracy by split, kept in `path` along with which encoder it is of."""
    digest = hashlib.sha256(encoder.read_bytes()).hexdigest()
    about = {"encoder_sha256": digest, "patches": len(labelled.tiles)}
    if path.is_file():
        with suppress(ValueError, AttributeError):  # a damaged one is made again
            known = json.loads(path.read_text())
            if known.items() >= about.items():
                return known
    features = {split: labelled.features(encoder, split) for split in SPLITS}
    truth = {split: labelled.truth[labelled.positions[split]] for split in SPLITS}
    layers = [fit_linear(features["train"], truth["train"], 2, penalty) for penalty in PENALTIES]
    accuracies = [
        {split: float((layer(features[split]).argmax(dim=1) == truth[split]).float().mean()) for split in SPLITS}
        for layer in layers
    ]
    best = max(range(len(layers)), key=lambda k: accuracies[k]["val"])
    found = {**about, "penalty": layers[best].penalty, **accuracies[best]}
    with writing(path), written_whole(path) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    return found


def _line(name: str, found: dict[str, Any]) -> str:
    return f"{name:<12}" + "   ".join(
        f"{split} –" if found[split] is None else f"{split} {found[split]:.4f}" for split in SPLITS
    )


def _deviation(values: list[float]) -> float | None:
    """Of the sample; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


if __name__ == "__main__":
    run_script(main)
