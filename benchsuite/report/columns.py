"""The columns of each board: heading, statistic, how it is printed, what it means."""

from __future__ import annotations

from dataclasses import dataclass

from ..analysis.leaderboard import BETTER
from ..analysis.statistics import MAY_LOSE


@dataclass(frozen=True)
class Column:
    """How a statistic is printed.

    digits: decimals; None for two, or three below 1 (sizes and ratios span orders of magnitude).
    optional: left out where no row has a value.
    screen: whether it appears on the screen and in LaTeX, which are narrow.
    word: a statistic that is a word and stands behind the number.
    """

    heading: str
    name: str
    digits: int | None = None
    screen: bool = True
    optional: bool = False
    word: str = ""

    @property
    def best(self) -> str:
        """ "max" or "min" where one end is better, else ""."""
        return BETTER.get(self.name, "")


TITLES = {
    "accuracy": "Accuracy",
    "backward_transfer": "Backward transfer",
    "parameter_efficiency": "Parameter efficiency",
    "training_memory": "Training memory",
}
COLUMNS = {
    "accuracy": [
        Column("Accuracy (%)", "accuracy", 2),
        Column("Learning accuracy (%)", "learning_accuracy", 2),
        Column("Forward gain", "forward_gain", 2),
        Column("n", "n", 0),
    ],
    "backward_transfer": [
        Column("Backward transfer", "bwt", 2),
        Column("Forgetting", "forgetting", 2),
        Column("n", "n", 0),
    ],
    "parameter_efficiency": [
        Column("MB", "megabytes"),
        Column("Weights (MB)", "weights", screen=False),
        Column("Heads (MB)", "heads", screen=False),
        Column("Masks (MB)", "masks", screen=False),
        Column("Other (MB)", "other", screen=False),
        Column("Size ratio", "ratio"),
        Column("Compression", "compression", screen=False),  # the inverse of the column before
        Column("MB / task", "added", screen=False),
        Column("MACs (M)", "macs", screen=False),
        Column("Dense MACs (M)", "dense_macs", screen=False),
        Column("Training MB", "training_megabytes", screen=False),
        Column("Accuracy (%)", "accuracy", 2),
        Column("8-bit MB", "int8_megabytes", optional=True),
        Column("8-bit (%)", "int8_accuracy", 2, optional=True),
        Column("Smallest (MB)", "smallest_megabytes", optional=True, word="smallest_form"),
        Column("At matched size (%)", "matched_accuracy", 2, optional=True),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
    "training_memory": [
        Column("Held (MB)", "held"),
        Column("Peak (MB)", "peak"),
        Column("Formula (MB)", "formula", optional=True),  # what a paper counts: never without the other two
        Column("Training MB", "training_megabytes", screen=False),
        Column("Carried MB", "carried_megabytes", optional=True),
        Column("Compute", "compute", 2, optional=True),
        Column("Step time ratio", "step_time", 2, optional=True),
        Column("Accuracy (%)", "accuracy", 2),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
}
SAYS = {  # what the columns mean, and the order of rows where it is not that of the first column
    "accuracy": (
        "Accuracy: mean over all tasks after the last one. Learning accuracy: mean over tasks, each measured right after it was"
        " learned. Forward gain: learning accuracy minus that of a separate network per task, from the second task on."
    ),
    "backward_transfer": (
        "Backward transfer: mean change in a task's accuracy from when it was learned to the end. Forgetting: mean drop from a"
        " task's best accuracy to its final one. Both without the last task."
    ),
    "parameter_efficiency": (
        "MB: size of the file that serves all tasks. Size ratio: to a separate network per task. Pareto: no ranked row dominates"
        " it in size and accuracy. Order: Pareto front, then by size."
    ),
    "training_memory": (
        "Memory of a training step. Held: for the backward pass. Peak: most alive at once. Formula: what papers count."
        " Training MB: what lives between two steps. Carried MB: what the next task needs of all before it. Compute: images"
        " through the network, relative to fine-tuning. Pareto: no ranked row dominates it in held MB and accuracy. Order:"
        " Pareto front, then by held MB."
    ),
}
FEWER_BITS = (
    "8-bit: size and accuracy of the same networks, stored in 8 bits. Smallest: the smallest storage form (fp32, fp16, int8,"
    f" int6, int4) whose mean accuracy is at most {MAY_LOSE} points below fp32's. Pareto counts every form."
)
