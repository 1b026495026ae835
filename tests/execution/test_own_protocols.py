"""A protocol in a file of the user's: on their own photos, in every process, with records that know what it says."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import benchsuite
from benchsuite import registry, source
from benchsuite.cli.main import main
from benchsuite.data import datasets
from benchsuite.errors import UserError
from benchsuite.execution import ray
from benchsuite.protocol import protocols
from benchsuite.training.runner import identify

PHOTOS = """
from benchsuite.data import DataSet, ImageFolder, declare
from benchsuite.protocol import Protocol, Published, Recipe, register, split

photos = declare(DataSet(name="my-photos", classes=4, folder="photos", reader=ImageFolder(size=8, mode="L")))
recipe = Recipe(backbone="digits", width=0.5, epochs=2, batch_size=4, lr=1e-2)
register(
    Protocol(
        name="split-photos",
        tasks=split(photos, tasks=2),
        image=(1, 8, 8),
        tiers={"paper": recipe},
        published=(Published(method="Theirs", accuracy=99.0),),
    )
)
"""


@pytest.fixture
def forget(monkeypatch, own_methods):
    """What was loaded from files is forgotten after the test, and when called."""
    known = {registry_: (dict(registry_.all()), dict(registry_._origins)) for registry_ in (protocols, datasets)}

    def forget():
        for each, (items, origins) in known.items():
            monkeypatch.setattr(each, "_known", dict(items))
            monkeypatch.setattr(each, "_origins", dict(origins))
            monkeypatch.setattr(each, "files", {})
        monkeypatch.setattr(registry, "_BESIDE", {})

    forget()
    return forget


@pytest.fixture
def place(tmp_path, monkeypatch, forget):
    """The folder of somebody with photos of four kinds: stripes of four directions, of several sizes."""
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("apples", "birds", "cars", "doors")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            side = int(rng.integers(16, 40))
            y, x = np.mgrid[:side, :side] / side * 20
            wave = (x, y, x + y, x - y)[number]
            pixels = np.uint8(127 + 100 * np.sin(wave + rng.random() * 6) + rng.random((side, side)) * 20)
            Image.fromarray(pixels).convert("RGB").save(tmp_path / "photos" / name / f"IMG_{i}.JPG", "JPEG")
    (tmp_path / "split_photos.py").write_text(PHOTOS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ["--protocol", "./split_photos.py"]


@pytest.mark.slow
def test_own_photos_three_methods_one_board(place, capsys, forget):
    """In fewer than 40 lines of the user's, each run in a process of its own, nothing edited elsewhere."""
    assert len(PHOTOS.splitlines()) < 40
    command = ["leaderboard", *RUN, "--no-figures", "--seeds", "1", "--jobs", "2"]
    methods = [word for name in ("finetune", "individual", "ewc") for word in ("--method", name)]
    assert main([*command, *methods]) == 0
    board = (place / "runs" / "split-photos" / "paper" / "leaderboard" / "accuracy.md").read_text()
    assert all(f"| {name} |" in board.replace("*", "").replace("<ins>", "").replace("</ins>", "") for name in ("finetune", "ewc"))
    assert {*benchsuite.records(place / "runs")["method"]} == {"finetune", "individual", "ewc"}
    assert "own images: my-photos" in board
    assert "Theirs" not in board, "published figures stand beside official data sets only"

    # The photos are moved away: the finished board is still shown, and a run that is missing says what it lacks.
    shutil.move(place / "photos", place / "moved")
    capsys.readouterr()
    assert main([*command, *methods]) == 0
    assert main(["run", *RUN, "--method", "ewc"]) == 0
    assert main(["leaderboard", "--no-run", *RUN, "--no-figures"]) == 0
    assert main(["status", *RUN, *methods, "--seeds", "1"]) == 0
    assert "3 done" in capsys.readouterr().out
    for more, left in ((["--method", "si"], "1 of 4"), (["--match-size", "finetune", "--seeds", "1-2"], "3 of 6")):
        assert main([*command, *methods, *more]) == 2
        out, error = capsys.readouterr()
        (line,) = [line for line in error.splitlines() if "error" in line]
        assert f"{left} runs are missing from this board: my-photos not found in {place / 'photos'}" in line
        assert re.search("finetune.*individual|individual.*finetune", out, re.DOTALL), "what is there is ranked"
    elsewhere = [*command, "--method", "finetune", "--results", "elsewhere"]
    assert main(elsewhere) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "error: my-photos not found" in error  # control: there is nothing to show
    plan = benchsuite.plan("split-photos", methods=["si"], seeds=[1])
    shutil.move(place / "moved", place / "photos")
    assert plan.run(jobs=1) == {}, "they are back: the run is the same as if they had never gone"
    assert benchsuite.plan("split-photos", methods=["si"], seeds=[1]).missing() == []

    # Without its file the protocol is not known: nothing is said of a change.
    forget()
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "the protocol split-photos is not known here (name its file with --protocol)" in said


def test_another_version_of_a_protocol_makes_its_records_stale(place, forget):
    job = benchsuite.resolve("./split_photos.py", "paper", "finetune", 1)
    record = benchsuite.run(job, results=place / "runs", device="cpu")
    assert source.stale(record) is None
    assert record.made_by["protocol split-photos"] == source.digest_of_protocol(protocols.get("split-photos"))
    assert record.data[0].own
    for change, stale in (("flip=True, ", True), ("summary='x', ", False)):
        forget()
        (place / "split_photos.py").write_text(PHOTOS.replace("image=(1", f"{change}image=(1"))
        protocols.find(place / "split_photos.py")
        assert (source.stale(record) == "changed since: protocol split-photos") is stale


def test_other_images_are_another_run(place):
    first = identify(benchsuite.resolve("./split_photos.py", "paper", "finetune", 1), None)
    (place / "photos" / "cars" / "IMG_0.JPG").unlink()
    assert identify(benchsuite.resolve("split-photos", "paper", "finetune", 1), None).folder != first.folder


def test_images_without_stated_mean_are_normalised_by_their_own(place):
    from benchsuite.data import load
    from benchsuite.method.artifact import Artifact

    job = benchsuite.resolve("./split_photos.py", "paper", "finetune", 1, overrides={"epochs": 1})
    benchsuite.run(job, results=place / "runs", device="cpu")
    (file,) = (place / "runs").rglob("artifact.safetensors")
    x = load("my-photos").train_x / 255
    (task, _) = Artifact.read(file).header["tasks"]
    np.testing.assert_allclose([*task["mean"], *task["std"]], [x.mean(), x.std()], atol=1e-4)


def test_bad_data_leaves_no_folder(place, capsys):
    (place / "photos" / "cars" / "IMG_0.JPG").write_bytes(b"no image")
    assert main(["run", *RUN, "--method", "finetune"]) == 2
    (place / "photos" / "cars" / "IMG_0.JPG").unlink()
    (place / "split_photos.py").write_text(PHOTOS.replace("(1, 8, 8)", "(1, 9, 8)"))
    protocols.files.clear()
    protocols.remove("split-photos")
    datasets.files.clear()
    datasets.remove("my-photos")
    assert main(["run", *RUN, "--method", "finetune"]) == 2
    assert "images of task 2 are 1x8x8, split-photos says image=(1, 9, 8)" in capsys.readouterr().err
    assert not (place / "runs").exists() or not list((place / "runs").iterdir())


def test_a_file_can_import_what_stands_beside_it(place, capsys):
    head, tail = PHOTOS.split("recipe =")
    (place / "my_photos_data.py").write_text(head.replace("from benchsuite.protocol", "#"))
    (place / "split_photos.py").write_text(
        "from benchsuite.protocol import *\nfrom benchsuite.protocol import Published, Recipe\n"
        f"from my_photos_data import photos\nrecipe ={tail}"
    )
    assert main(["run", *RUN, "--method", "finetune", "--set", "epochs=1"]) == 0
    file = place / "split_photos.py"
    assert registry.with_those_beside(file) == (file, place / "my_photos_data.py")
    texts = {part.name: part.read_bytes() for part in registry.with_those_beside(file)}
    sent = ray._written("split_photos.py", texts)
    assert {path.name for path in sent.parent.iterdir()} == {"split_photos.py", "my_photos_data.py"}
    assert sent.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name="split-photos"', 'name="split-cifar100"', "two protocols are called 'split-cifar100'; rename one of them"),
        ('name="my-photos"', 'name="mnist"', "two data sets are called 'mnist'; rename one of them"),
        ("classes=4", "classes=5", "5 classes of my-photos cannot be shared out to 2 tasks; write the tasks out"),
        ("register(\n", "print(\n", "registers 0 protocols, expected one; call register(Protocol(...)) once"),
        ("lr=1e-2", "lr=", "cannot be imported: SyntaxError"),
        ("epochs=2", "epochs=0", "cannot be imported: "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(place, capsys, old, new, said):
    assert old in PHOTOS
    (place / "split_photos.py").write_text(PHOTOS.replace(old, new))
    assert main(["leaderboard", "--no-run", *RUN]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"benchsuite: error: {place / 'split_photos.py'}: ")
    assert said in line
    (place / "split_photos.py").write_text(PHOTOS)  # mended, it can be loaded
    assert protocols.find("split_photos.py") == "split-photos"


@pytest.mark.slow
def test_every_command_takes_a_file(place, capsys):
    """Those that train are tested above."""
    assert main(["data", "verify", "split_photos.py"]) == 0
    assert "my-photos: 24 training and 8 test images, complete" in capsys.readouterr().out
    assert main(["data", "get", "split_photos.py"]) == 0
    assert "already in" in capsys.readouterr().out
    job = benchsuite.resolve(Path("split_photos.py"), "paper", "finetune", 1, overrides={"epochs": 1})
    benchsuite.run(job, results=place / "runs", device="cpu")
    assert main(["report", "paper", *RUN]) == 0
    assert (place / "paper" / "split-photos" / "paper" / "leaderboard.md").exists()
    assert main(["merge", "runs", "--results", "merged", *RUN]) == 0
    assert "1 added" in capsys.readouterr().out
    (record,) = (place / "runs").rglob("record.json")
    assert main(["verify", str(record), *RUN]) == 0
    assert "seed 1: identical" in capsys.readouterr().out
    assert main(["run", "--from", str(record), *RUN, "--results", "again"]) == 0
    (place / "R.csv").write_text("90,\n80,70\n")
    told = ["--matrix", "R.csv", "--unit", "percent", "--method", "theirs", "--source", "https://example.org", "--by", "Doe 2024"]
    assert main(["import", *RUN, *told]) == 0
    assert main(["tune", *RUN, "--tier", "paper", "--method", "ewc", "--trials", "1", "--set", "epochs=1"]) == 0
    assert main(["check", "split_photos.py"]) == 0
    assert (
        main(
            [
                "bench",
                *RUN,
                "--tier",
                "paper",
                "--sections",
                "methods",
                "--methods",
                "ewc",
                "--rounds",
                "1",
                "--steps",
                "1",
                "--tasks",
                "1",
                "2",
            ]
        )
        == 0
    )
    assert "split-photos" in capsys.readouterr().out
    other = place / "other.py"
    other.write_text(PHOTOS.replace("split-photos", "other").replace("my-photos", "other-photos"))
    assert main(["verify", str(record), "--protocol", "other.py"]) == 2
    assert "--protocol names a file of other, but the record is of split-photos" in capsys.readouterr().err


def test_plan_takes_a_file(place):
    made = benchsuite.plan("./split_photos.py", methods=["finetune"], seeds=[1], results=place / "runs")
    assert [job.protocol for job in made.missing()] == ["split-photos"]


def test_a_file_of_the_same_name_elsewhere_is_another_file(place):
    protocols.find("split_photos.py")
    (place / "b").mkdir()
    (place / "b" / "split_photos.py").write_text(PHOTOS.replace("split-photos", "b").replace("my-photos", "b-photos"))
    assert protocols.find("b/split_photos.py") == "b"
    assert protocols.find("./split_photos.py") == "split-photos"
    with pytest.raises(UserError, match="no such file"):
        protocols.find("c/split_photos.py")
