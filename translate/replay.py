"""Replay buffer of fakes for the mask discriminator (Shrivastava et al. 2017; 50 images as in CycleGAN)."""

import torch
from torch import Tensor

from histo.randomness import draws


class ReplayBuffer:
    """The last fakes, some of which are judged again in place of new ones.

    Until it is full every fake is stored and judged. Afterwards half of the fakes, chosen by (seed, image index), are
    swapped with a stored one. Its tensors belong to the checkpoint.
    """

    def __init__(self, seed: int, capacity: int = 50) -> None:
        self.seed, self.capacity = seed, capacity
        self.images: list[Tensor] = []

    def swap(self, fakes: Tensor, indices: list[int]) -> Tensor:
        """Fakes float [N, 3, H, W] with global image indices → what to judge, same shape, detached."""
        judged = []
        for fake, index in zip(fakes.detach().unbind(), indices, strict=True):
            if len(self.images) < self.capacity:
                self.images.append(fake.clone())
                judged.append(fake)
                continue
            generator = draws(self.seed, "replay", index)
            slot = int(generator.integers(self.capacity))
            if generator.random() < 0.5:
                judged.append(self.images[slot])
                self.images[slot] = fake.clone()
            else:
                judged.append(fake)
        return torch.stack(judged)

    def tensors(self) -> dict[str, Tensor]:
        """The stored fakes by slot, for a checkpoint."""
        return {str(k): image for k, image in enumerate(self.images)}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Put back what `tensors` gave out, onto the device it is used on."""
        self.images = [tensors[str(k)].to(device) for k in range(len(tensors))]
