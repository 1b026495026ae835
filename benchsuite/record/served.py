"""How fast networks are as served, beside the dense network of the same width: measured in one run, kept beside the records."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import files
from ..errors import UserError
from ..text import clean
from .schema import RunRecord

SERVED = "served.csv"  # in the folder of a board, RESULTS/PROTOCOL/TIER
COLUMNS = ("method", "seed", "artifact_sha256", "speed", "lowest", "highest", "how")


@dataclass(frozen=True)
class ServedSpeeds:
    """speed: the dense network's time divided by that of each artifact, by the artifact's digest: more than 1 is quicker.
    how: one line on where and how they were measured. A record whose artifact was made again has another digest, and no speed."""

    speed: Mapping[str, float] = field(default_factory=dict)
    how: str = ""

    def of(self, record: RunRecord) -> float:
        """The speed of a run's artifact; NaN where it was not measured."""
        return self.speed.get(record.artifact_sha256, math.nan)


NOT_MEASURED = ServedSpeeds()


def read_served(folder: Path) -> ServedSpeeds:
    """The speeds in the folder of a board; none where there is no file. Raises UserError for one that is wrong."""
    path = folder / SERVED
    try:
        rows = list(csv.DictReader(io.StringIO(files.read(path).decode())))
        speed = {row["artifact_sha256"]: float(row["speed"]) for row in rows}
        how = {row["how"] for row in rows}
        if len(how) != 1 or not all(len(sha) == 64 and 0 < value < math.inf for sha, value in speed.items()):
            raise ValueError
    except FileNotFoundError:
        return NOT_MEASURED
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "make it readable, or move it away") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(
            f"{path}: is no table of served speeds", f"measure again with `benchsuite bench --served {folder}`, or delete it"
        ) from None
    return ServedSpeeds(speed, clean(how.pop()))
