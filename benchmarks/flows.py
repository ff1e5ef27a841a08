"""Time flows and instances from them against Cellpose's, one thread: `OMP_NUM_THREADS=1 python benchmarks/flows.py`.

Phantom tissue of 0.25 µm/px, and 128 x 128 also of 0.5; flows are true ones with white noise (standard deviation 0.2).
"""

import contextlib
import io
import logging
import warnings

import numpy as np
import torch
from cellpose.dynamics import compute_masks, labels_to_flows
from machine import cpu_model, quickest
from numpy.typing import NDArray

from histo.flows import FLOW_SCALE, flows_of, instances_from
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.randomness import draws

SCENES = ((128, 0.5, 9), (128, 0.25, 9), (256, 0.25, 5), (1000, 0.25, 2))  # side, µm/px, repeats
CPU = torch.device("cpu")


def row(truth: NDArray[np.int32], repeats: int) -> str:
    """Milliseconds of both libraries for both directions, and PQ of the instances: cells of a markdown table."""
    noise = draws(0, "flow noise", 0).normal(0, 0.2, (2, *truth.shape)).astype(np.float32)
    flow, logits = flows_of(truth) + noise, np.where(truth > 0, 4, -4).astype(np.float32)
    scaled = FLOW_SCALE * flow
    calls = (
        lambda: flows_of(truth),
        lambda: labels_to_flows([truth], device=CPU),
        lambda: instances_from(flow, logits),
        lambda: compute_masks(scaled, logits, min_size=12, device=CPU),
    )
    with contextlib.redirect_stderr(io.StringIO()):  # Cellpose's progress bars
        cells = [f"{1000 * quickest(call, repeats):.1f}" for call in calls]
        cells += [f"{compare(truth, np.asarray(call())).pq:.3f}" for call in calls[2:]]
    return " | ".join(cells)


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # Cellpose's use of sparse tensors
    print(f"{cpu_model()}; ms, quickest run; PQ of the instances against the truth\n")
    print("| side | µm/px | nuclei | flows_of | labels_to_flows | instances_from | compute_masks | PQ | PQ Cellpose |")
    print("|---|---|---|---|---|---|---|---|---|")
    for side, mpp, repeats in SCENES:
        truth = PhantomTissue(0, size=side, mpp=mpp)[0].instances
        assert truth is not None
        print(f"| {side} | {mpp} | {truth.max()} | {row(truth, repeats)} |", flush=True)


if __name__ == "__main__":
    main()
