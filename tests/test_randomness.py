"""Draws are pure, and streams, seeds and indices do not share numbers."""

import numpy as np
import pytest
from scipy import stats

from histo.randomness import draws

KEYS = [
    (0, "crop", 0),
    (0, "crop", 1),
    (0, "style", 0),
    (1, "crop", 0),
    (-1, "crop", 0),
    (0, "crop", 2**40),
    (0, "", 0),
]


def test_equal_keys_give_equal_draws() -> None:
    for key in KEYS:
        np.testing.assert_array_equal(draws(*key).random(64), draws(*key).random(64))


def test_draws_ignore_what_was_drawn_elsewhere() -> None:
    alone = draws(3, "crop", 7).random(16)
    np.random.default_rng(0).random(5)
    draws(3, "crop", 6).random(1000)
    np.testing.assert_array_equal(draws(3, "crop", 7).random(16), alone)


def test_no_two_keys_share_a_word() -> None:
    words = np.concatenate([draws(*key).integers(0, 2**63, 2000) for key in KEYS])
    assert len(np.unique(words)) == len(words)


def test_stream_and_seed_cannot_be_confused() -> None:
    assert draws(1, "1/a", 0).random() != draws(1, "a", 0).random()
    assert draws(11, "a", 0).random() != draws(1, "1a", 0).random()


def test_long_draws_do_not_run_into_the_next_index() -> None:
    long = draws(0, "noise", 0).integers(0, 2**63, 200_000)
    following = draws(0, "noise", 1).integers(0, 2**63, 1000)
    assert not np.isin(following, long).any()


@pytest.mark.parametrize("stream", ["crop", "style"])
def test_first_draws_of_neighbouring_indices_are_uniform_and_uncorrelated(stream: str) -> None:
    first = np.array([draws(5, stream, index).random() for index in range(3000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.07


def test_streams_are_uncorrelated() -> None:
    pair = np.array([[draws(5, stream, index).random() for stream in ("a", "b")] for index in range(3000)])
    assert abs(np.corrcoef(pair.T)[0, 1]) < 0.07
