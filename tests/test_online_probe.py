"""The probe while training: figures of fixed tiles, and nothing of the training changed."""

import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from histo.errors import InputError
from histo.metrics.classification import scores
from histo.phantom import PhantomTissue
from histo.probes import fit_linear, knn
from histo.running.alarms import Alarm
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder
from pretrain.collapse import rule_of
from pretrain.online import OnlineProbe, ProbeSettings
from pretrain.views import ViewSettings

HALF = (0.5,) * 3
WITH_LABELS = {f"{kind}_{name}" for kind in ("knn", "linear") for name in ("accuracy", "balanced_accuracy", "macro_f1")}
WITHOUT = {"uniformity", "spread", "spread_share", "effective_rank", "stain_cosine", "stain_ratio"}


class Small(nn.Module):
    """A network with everything that a look could change."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 24, 5, 2), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(24, 32, 5, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "set"
    folder.mkdir()
    write_folder(PhantomTissue(2, size=64, count=80), folder)
    return folder


@pytest.fixture(scope="module")
def probe(labelled: Path) -> OnlineProbe:
    return OnlineProbe(ProbeSettings(str(labelled), stains=3), 48, HALF, HALF, seed=0)


@pytest.fixture
def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Small().train()


def copied(folder: Path, to: Path, change: dict[str, str]) -> Path:
    """A set with columns of its table overwritten."""
    shutil.copytree(folder, to)
    lines = (folder / "tiles.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) | change for line in lines[1:]]
    text = "\n".join([lines[0], *(",".join(row[column] for column in columns) for row in rows)])
    (to / "tiles.csv").write_text(text + "\n")
    return to


def test_nothing_of_the_training_is_touched(probe: OnlineProbe, encoder: nn.Module) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = probe.measure(encoder, "cpu")
    probe.panel(encoder, "cpu")
    probe.projection(encoder, "cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(module.training for module in encoder.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert probe.measure(encoder, "cpu") == first


def test_figures_are_those_of_the_probes(probe: OnlineProbe, encoder: nn.Module, labelled: Path) -> None:
    found = probe.measure(encoder, "cpu")
    assert set(found) == {f"probe/{name}" for name in WITH_LABELS | WITHOUT}
    entries = open_tiles(labelled).entries
    assert "own splits" in probe.basis
    classes = sorted({str(entry.label) for entry in entries})
    truth = {
        part: torch.tensor([classes.index(str(entry.label)) for entry in entries if entry.split == part])
        for part in ("train", "test")
    }
    encoder.eval()
    with torch.no_grad():
        features = {part: encoder((probe.images[part].float() / 255 - 0.5) / 0.5) for part in truth}
    around = features["train"].mean(dim=0)
    votes = knn(features["train"] - around, truth["train"], features["test"] - around, len(classes))
    vote = scores(votes, truth["test"], len(classes))
    layer = fit_linear(features["train"], truth["train"], len(classes))
    read = scores(layer(features["test"]).argmax(1), truth["test"], len(classes))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[f"probe/knn_{name}"] == pytest.approx(vote[name])
        assert found[f"probe/linear_{name}"] == pytest.approx(read[name])
    assert found["probe/linear_accuracy"] > 0.5  # of five classes
    assert 0 < found["probe/stain_cosine"] < 1


def test_views_give_an_alignment(probe: OnlineProbe, encoder: nn.Module) -> None:
    one, other = probe.views(encoder, "cpu", ViewSettings(), 0)
    assert one.shape == other.shape == (len(probe.original), one.shape[1])
    apart = probe.measure(encoder, "cpu", (one, other))["probe/alignment"]
    still = ViewSettings(smallest_area=1, stretch=1, turn=False, jitter=0, grey=0, blur=0)
    alike = probe.views(encoder, "cpu", still, 0)
    assert probe.measure(encoder, "cpu", alike)["probe/alignment"] == pytest.approx(0, abs=1e-9)
    assert 0.01 < apart < 4


def test_collapse_shows(probe: OnlineProbe) -> None:
    class Collapsed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 16) + 0 * x.mean((1, 2, 3))[:, None]

    class Broken(Collapsed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    found = probe.measure(Collapsed(), "cpu")
    assert found["probe/spread_share"] == pytest.approx(0, abs=1e-6)
    assert found["probe/effective_rank"] == pytest.approx(1)
    assert np.isnan(probe.measure(Broken(), "cpu")["probe/spread"])


def test_without_labels_the_other_figures_remain(encoder: nn.Module) -> None:
    settings = ProbeSettings(tiles=12)
    probe = OnlineProbe(settings, 32, HALF, HALF, seed=0, unlabelled=PhantomTissue(5, size=64, count=20))
    assert probe.basis.startswith("12 of 20 phantom tiles")
    assert set(probe.measure(encoder, "cpu")) == {f"probe/{name}" for name in WITHOUT}
    with pytest.raises(InputError, match="no tiles to look at"):
        OnlineProbe(settings, 32, HALF, HALF, seed=0)


def test_a_set_without_splits_is_parted_by_patient(labelled: Path, tmp_path: Path) -> None:
    folder = copied(labelled, tmp_path / "set", {"split": ""})
    probe = OnlineProbe(ProbeSettings(str(folder)), 32, HALF, HALF, seed=0)
    assert "a quarter for test, drawn by patient" in probe.basis
    assert 10 <= len(probe.images["test"]) <= 30
    assert len(probe.images["test"]) + len(probe.images["train"]) == 80
    some = OnlineProbe(ProbeSettings(str(folder), tiles=40), 32, HALF, HALF, seed=0)
    assert 35 <= len(some.images["test"]) + len(some.images["train"]) <= 40


def test_tiles_that_cannot_be_probed_are_told(labelled: Path, tmp_path: Path) -> None:
    def refused(change: dict[str, str], name: str) -> str:
        with pytest.raises(InputError) as caught:
            OnlineProbe(ProbeSettings(str(copied(labelled, tmp_path / name, change))), 32, HALF, HALF, seed=0)
        return str(caught.value)

    assert "80 of the 80 tiles of --probe.labelled have no label" in refused({"label": ""}, "unlabelled")
    assert "have the label tumour, expected two classes" in refused({"label": "tumour"}, "one-class")

    class Glass(PhantomTissue):
        def _draw(self, position: int):  # type: ignore[no-untyped-def]
            return replace(super()._draw(position), image=np.full((3, 32, 32), 250, np.uint8))

    with pytest.raises(InputError, match="has H&E stains, expected 2 or more"):
        OnlineProbe(ProbeSettings(), 32, HALF, HALF, seed=0, unlabelled=Glass(0, size=32, count=5))
    with pytest.raises(InputError, match=r"--probe.stains is 1, expected 2"):
        ProbeSettings(stains=1)


def test_the_panel_shows_cosines(probe: OnlineProbe, encoder: nn.Module) -> None:
    panel = probe.panel(encoder, "cpu")
    side = 2 * 48  # the largest whole factor within 128 px
    assert panel.dtype == np.uint8
    assert panel.shape == (6 * (side + 18), 4 * (side + 4), 3)
    shown = panel[2 : 2 + side : 2, 2 : 2 + side : 2]
    assert (shown == probe.original[0].permute(1, 2, 0).numpy()).all()


def test_the_projector_works_without_tensorflow(probe: OnlineProbe, encoder: nn.Module, tmp_path: Path) -> None:
    vectors, names, thumbnails = probe.projection(encoder, "cpu")
    assert vectors.shape == (len(names), 32)
    assert thumbnails.shape == (len(names), 3, 48, 48)
    assert 0 <= thumbnails.min() <= thumbnails.max() <= 1
    with SummaryWriter(str(tmp_path)) as board:
        board.add_embedding(vectors, names, thumbnails, global_step=7, tag="probe")
    assert "tensorflow" not in sys.modules
    (folder,) = (path for path in tmp_path.glob("00007/*") if path.is_dir())
    assert len((folder / "tensors.tsv").read_text().splitlines()) == len(names)
    assert (folder / "metadata.tsv").read_text().split() == names
    assert (folder / "sprite.png").stat().st_size > 1000


def test_phantom_tissue_is_a_labelled_set_with_patients_of_its_own() -> None:
    probe = OnlineProbe(ProbeSettings(labelled="phantom", tiles=40, stains=2), 32, HALF, HALF, seed=0)
    assert "own splits train and test" in probe.basis
    assert {part: len(truth) for part, truth in probe.truth.items()} == {"train": 32, "test": 8}
    assert len(probe.classes) > 2


def test_features_that_are_all_the_same_are_an_alarm_and_those_that_share_a_mean_are_none() -> None:
    assert Alarm(rule_of)({"probe/spread_share": 0.0098}) == []  # of a healthy encoder that began as a translator's
    (sentence,) = Alarm(rule_of)({"probe/spread_share": 1e-5})
    assert "the features of all tiles are almost the same, which is collapse" in sentence
