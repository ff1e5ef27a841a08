"""Has the encoder collapsed, so that it says the same of every tile?

Unit vectors of D numbers in random directions deviate by 1/√D in each number; measured in that unit, the spread of
embeddings is 1 where they use all directions alike, and 0 where all are one (Chen & He 2021, section 4.1).
"""

from histo.running.alarms import Rule

EMBEDDINGS = Rule(
    0.1,
    5,
    "the embeddings of all tiles are almost the same, which is collapse",
    "lower --train.learning_rate, raise its warm-up, or use larger batches",
)
FEATURES = Rule(
    0.001,  # a common mean of positive features leaves about 0.01: a healthy run from a translator had 0.0098
    1,
    "the features of all tiles are almost the same, which is collapse",
    "look at the views, lower --train.learning_rate, or go back to a checkpoint before",
)


def rule_of(name: str) -> Rule | None:
    """When a figure that a pretraining logs under this name is a collapse."""
    if name.startswith("embedding/") and name.endswith("_spread"):
        return EMBEDDINGS
    return FEATURES if name == "probe/spread_share" else None
