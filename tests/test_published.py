"""What is published is what the records say: boards, and the tables of the README."""

import re
from pathlib import Path

import pytest

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.protocol import protocols
from benchsuite.record.served import read_served
from benchsuite.record.store import read_all
from benchsuite.report import tables
from benchsuite.source import stale

ROOT = Path(__file__).parents[1]
BOARDS = sorted(path.parent for path in ROOT.glob("results/**/leaderboard"))
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- (results/.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def rows(markdown):
    """The lines of its tables."""
    return [line for line in markdown.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: "-".join(folder.relative_to(ROOT).parts[1:]))
def test_a_published_board_is_made_of_the_records_beside_it(folder):
    published = protocols.get(folder.parent.name).published
    board = leaderboard(read_all(folder), published, stale=stale, served=read_served(folder))
    for kind in tables.TITLES:
        made = tables.to_markdown(board, kind)
        assert (folder / "leaderboard" / f"{kind}.md").read_text() == made, (
            f"benchsuite leaderboard --no-run --protocol {folder.parent.name} --tier {folder.name} "
            f"--results {folder.parents[1].relative_to(ROOT)}"
        )
        assert rows(made)


def test_the_tables_of_the_readme_are_published_ones():
    """Between `<!-- results/FILE -->` and `<!-- end -->` stand the rows of that file's tables, and nothing else."""
    blocks = BLOCK.findall(README)
    assert len(blocks) == README.count("<!-- results/") > 0
    for file, shown in blocks:
        assert shown.splitlines() == rows((ROOT / file).read_text()), file
