"""The replay buffer: fills, swaps, and goes on alike after a restore."""

import torch
from torch import Tensor

from translate.replay import ReplayBuffer


def fakes(indices: list[int]) -> Tensor:
    """Images whose every value is their global index."""
    return torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)


def values(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].int().tolist()


def feed(buffer: ReplayBuffer, batches: range, size: int = 4) -> list[list[int]]:
    judged = []
    for batch in batches:
        indices = list(range(batch * size, (batch + 1) * size))
        judged.append(values(buffer.swap(fakes(indices), indices)))
    return judged


def flat(batches: list[list[int]]) -> list[int]:
    return [value for batch in batches for value in batch]


def test_fills_first_and_judges_what_is_new() -> None:
    buffer = ReplayBuffer(seed=0, capacity=8)
    assert feed(buffer, range(2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert values(torch.stack(buffer.images)) == list(range(8))


def test_swaps_about_half_and_loses_nothing() -> None:
    buffer = ReplayBuffer(seed=0, capacity=20)
    judged = flat(feed(buffer, range(200)))
    later = list(zip(judged[20:], range(20, 800), strict=True))
    swapped = [(old, new) for old, new in later if old != new]
    assert 0.43 < len(swapped) / len(later) < 0.57
    assert all(old < new for old, new in swapped), "an old fake is judged in place of the new one"
    # Every fake was judged when it came, or waits in the buffer, or was judged when it was swapped out.
    assert set(judged) | set(values(torch.stack(buffer.images))) == set(range(800))
    assert len(buffer.images) == 20


def test_all_slots_are_used() -> None:
    buffer = ReplayBuffer(seed=0, capacity=10)
    feed(buffer, range(100))
    assert min(values(torch.stack(buffer.images))) >= 10


def test_a_swap_is_keyed_by_the_image_not_by_the_batch() -> None:
    one, other = ReplayBuffer(seed=1, capacity=4), ReplayBuffer(seed=1, capacity=4)
    by_four = flat(feed(one, range(10), size=4))
    assert by_four == flat(feed(other, range(40), size=1))
    assert by_four != flat(feed(ReplayBuffer(seed=2, capacity=4), range(10), size=4))


def test_judged_fakes_are_detached_and_the_buffer_keeps_copies() -> None:
    buffer = ReplayBuffer(seed=0, capacity=4)
    new = torch.zeros(2, 3, 2, 2, requires_grad=True)
    judged = buffer.swap(new, [0, 1])
    assert not judged.requires_grad
    assert judged.shape == new.shape
    with torch.no_grad():
        new += 1
    assert values(torch.stack(buffer.images)) == [0, 0]


def test_restore_goes_on_alike() -> None:
    buffer = ReplayBuffer(seed=0, capacity=6)
    for stop in (1, 20):  # half full, and long since full
        feed(buffer, range(stop))
        copy = ReplayBuffer(seed=0, capacity=6)
        copy.restore({name: image.clone() for name, image in buffer.tensors().items()}, torch.device("cpu"))
        assert feed(copy, range(stop, stop + 10)) == feed(buffer, range(stop, stop + 10))


def test_restore_of_more_than_ten_images_keeps_their_order() -> None:
    buffer = ReplayBuffer(seed=0, capacity=12)
    feed(buffer, range(3))
    shuffled = dict(sorted(buffer.tensors().items()))  # "10" before "2", as a file may have it
    copy = ReplayBuffer(seed=0, capacity=12)
    copy.restore(shuffled, torch.device("cpu"))
    assert values(torch.stack(copy.images)) == list(range(12))


def test_restore_of_an_empty_buffer() -> None:
    buffer = ReplayBuffer(seed=0)
    buffer.restore({}, torch.device("cpu"))
    assert buffer.images == []
