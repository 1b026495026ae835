"""The columns of each board: heading, statistic, how it is printed, what it means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..analysis.leaderboard import BETTER
from ..analysis.statistics import MAY_LOSE


@dataclass(frozen=True)
class Column:
    """How a statistic is printed.

    digits: decimals; None for those of a size: two, or three where a row is below 1, the same in the whole column.
    optional: left out where no row has a value.
    screen: whether it appears on the screen and in LaTeX, which are narrow.
    word: a statistic that is a word and stands behind the number.
    says: what it means, for captions.
    better: "max" or "min", for a statistic that no single board ranks.
    places, tested: once the rows are known (`tables.fitted`): the decimals of a size, and whether daggers stand in this column.
    """

    heading: str
    name: str
    digits: int | None = None
    screen: bool = True
    optional: bool = False
    word: str = ""
    says: str = ""
    better: str = ""
    places: int | None = None
    tested: bool = False

    @property
    def best(self) -> str:
        """ "max" or "min" where one end is better, else ""."""
        return self.better or BETTER.get(self.name, "")


def decimals(values: Iterable[float]) -> int:
    """Those of a column of sizes."""
    return 3 if any(0 < value < 1 for value in values) else 2


TITLES = {
    "accuracy": "Accuracy",
    "backward_transfer": "Backward transfer",
    "parameter_efficiency": "Parameter efficiency",
    "training_memory": "Training memory",
}
ACCURACY = Column("Accuracy (%)", "accuracy", 2, says="mean over all tasks after the last one")
TRAINING = Column("Training (MB)", "training_megabytes", screen=False, says="what lives between two steps")
SEEDS = Column("n", "n", 0)
RANK = Column("Average rank", "average_rank", 2, better="min")  # over protocols
COLUMNS = {
    "accuracy": [
        ACCURACY,
        Column(
            "Anytime accuracy (%)",
            "anytime_accuracy",
            2,
            screen=False,
            says="mean over t of the accuracy on the t tasks learned so far",
        ),
        Column("Learning accuracy (%)", "learning_accuracy", 2, says="mean over tasks, each measured right after it was learned"),
        Column(
            "Forward gain (pp)",
            "forward_gain",
            2,
            says="learning accuracy minus that of a separate network per task, from the second task on",
        ),
        SEEDS,
    ],
    "backward_transfer": [
        Column(
            "Backward transfer (pp)",
            "bwt",
            2,
            says="mean over all tasks i but the last of R(T, i) minus R(i, i), the accuracy on task i after the last task minus"
            " that right after task i (Lopez-Paz and Ranzato 2017)",
        ),
        Column(
            "Forgetting (pp)",
            "forgetting",
            2,
            says="mean over all tasks i but the last of max R(t, i) minus R(T, i), the best accuracy on task i after any task"
            " from i to T - 1 minus that after the last task (Chaudhry et al. 2018)",
        ),
        SEEDS,
    ],
    "parameter_efficiency": [
        Column("Size (MB)", "megabytes", says="file that serves all tasks"),
        Column("Weights (MB)", "weights", screen=False),
        Column("Heads (MB)", "heads", screen=False),
        Column("Masks (MB)", "masks", screen=False),
        Column("Other (MB)", "other", screen=False),
        Column("Size ratio", "ratio", says="to a separate network per task"),
        Column("Compression", "compression", screen=False),  # the inverse of the column before
        Column("Added (MB / task)", "added", screen=False, says="for each task after the first"),
        Column("MACs (M)", "macs", screen=False),
        Column("Dense MACs (M)", "dense_macs", screen=False),
        Column(
            "Served speed (x dense)",
            "served_speed",
            2,
            screen=False,
            optional=True,
            says="images per second as served, relative to the dense network of the same width, timed in turns in one run",
        ),
        TRAINING,
        ACCURACY,
        Column("8-bit size (MB)", "int8_megabytes", optional=True, says="of the same networks, stored in 8 bits"),
        Column("8-bit accuracy (%)", "int8_accuracy", 2, optional=True, says="of the same networks, stored in 8 bits"),
        Column(
            "Smallest (MB)",
            "smallest_megabytes",
            optional=True,
            word="smallest_form",
            says=f"the smallest storage form (fp32, fp16, int8, int6, int4) whose mean accuracy is at most {MAY_LOSE} points"
            " below fp32's; native: codes of the method's own, in place of all of them",
        ),
        Column("At matched size (%)", "matched_accuracy", 2, optional=True, says="accuracy of the rows of about one size"),
        Column("Pareto", "pareto", says="no ranked row dominates it in size and accuracy, in whatever storage form"),
        SEEDS,
    ],
    "training_memory": [
        Column("Held (MB)", "held", says="for the backward pass, made in the step or before it"),
        Column("Peak (MB)", "peak", says="most alive at once in a step, beyond what was there before it"),
        # what a paper counts: never without the other two
        Column("Formula (MB)", "formula", optional=True, says="what papers count"),
        TRAINING,
        Column("Carried (MB)", "carried_megabytes", optional=True, says="what the next task needs of all before it"),
        Column("Compute", "compute", 2, optional=True, says="images through the network, relative to fine-tuning"),
        ACCURACY,
        Column("Pareto", "pareto", says="no ranked row dominates it in held MB and accuracy"),
        SEEDS,
    ],
}
ORDER = {  # of rows, where it is not that of the first column
    "parameter_efficiency": "Order: Pareto front, then by size.",
    "training_memory": "Order: Pareto front, then by held MB.",
}


def meanings(columns: Iterable[Column]) -> str:
    """What columns mean, in sentences; those of one meaning share one."""
    said: dict[str, list[str]] = {}
    for column in columns:
        if column.says:
            said.setdefault(column.says, []).append(column.heading.partition(" (")[0])
    return " ".join(f"{' and '.join(names)}: {text}." for text, names in said.items())
