"""`benchsuite check` of a protocol: a sound one passes, and each fault that is planted is named."""

from dataclasses import replace

import numpy as np
import pytest

from benchsuite import registry
from benchsuite.checks.protocol import examine, implausible, stable
from benchsuite.cli.main import main
from benchsuite.data import DataSet, Npz, datasets, declare, load
from benchsuite.protocol import Protocol, Recipe, Task, protocols, split

RECIPE = Recipe(backbone="digits", epochs=1, batch_size=4)


@pytest.fixture
def own(tmp_path, monkeypatch, cache_folder):
    """own(tasks, **more): a protocol on a small set of four classes."""
    for each in (protocols, datasets):
        each.all()
        for name in ("_known", "_origins"):
            monkeypatch.setattr(each, name, dict(getattr(each, name)))
        monkeypatch.setattr(each, "files", {})
    monkeypatch.setattr(registry, "_BESIDE", {})
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 4
    x[39] = x[3]  # one test image is a training image, too
    np.savez(tmp_path / "four.npz", x_train=x[:32], y_train=y[:32], x_test=x[32:], y_test=y[32:])
    four = declare(DataSet(name="four", classes=4, folder=tmp_path, reader=Npz("four.npz")))

    def make(tasks=None, image=(1, 8, 8), tiers=None):
        made = Protocol(name="own", tasks=tasks or split(four, 2), image=image, tiers=tiers or {"smoke": RECIPE})
        protocols._known["own"], protocols._origins["own"] = made, "__main__"
        return made

    return make


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "cache"))


def task(*classes, name="x", **more):
    return Task(name=name, dataset="four", classes=classes, **more)


def words(protocol, holds=False):
    return [finding.what for finding in examine(protocol, None) if finding.holds is holds]


def without_another_process(monkeypatch):
    """A protocol that stands in no file cannot be read by another process."""
    from benchsuite.checks import protocol

    monkeypatch.setattr(protocol, "stable", lambda made: protocol.Finding(True, "order"))


def test_a_sound_protocol_passes(own, monkeypatch):
    without_another_process(monkeypatch)
    found = list(examine(own(), None))
    assert [finding.what for finding in found if finding.holds is False] == []
    said = [finding.what for finding in found]
    assert said[0].startswith("four: 32 training images (8 a class), 8 test images (2 a class), 8x8, digest ")
    assert said[1] == "four: 1 test images are training images, too"
    assert said[-1].startswith("training: 2 tasks, 4 steps")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"tasks": (task(0, 4),)}, "classes: task x has class 4, which its data set has not"),
        ({"tasks": (Task(name="x", dataset="five", classes=(0,)),)}, "images: no data set is called 'five'"),
        ({"image": (1, 9, 8)}, "input: four: images of task 1 are 1x8x8, own says image=(1, 9, 8)"),
        ({"tasks": (task(0, 1, mean=(0.5,) * 3, std=(0.3,) * 3),)}, "input: own: task x has 3 means, but images have 1 channels"),
        ({"tasks": (task(0, 1, mean=(120.0,), std=(70.0,)),)}, "normalisation: task x states mean 120 and std 70 for channel 0"),
        ({"tasks": (task(0, 1, mean=(0.5,), std=(0.01,)),)}, "normalisation: task x states mean 0.5 and std 0.01"),
        ({"tiers": {"smoke": RECIPE, "paper": replace(RECIPE, backbone="vgg")}}, "tier paper: no backbone is called 'vgg'"),
        ({"tiers": {"smoke": replace(RECIPE, tasks=3)}}, "tier smoke: tasks must be at most 2 on own, got 3"),
    ],
)
def test_a_planted_fault_is_named(own, monkeypatch, made, said):
    without_another_process(monkeypatch)
    (found,) = words(own(**made))
    assert found.startswith(said)


def test_what_is_the_user_s_right_is_said(own, monkeypatch):
    without_another_process(monkeypatch)
    made = own((task(0, name="zero"), task(0, 1, 2, name="three", orientation="90")))
    assert words(made) == []
    notes = words(made, None)
    assert "tasks: 2, which have 1 of 3 classes in common" in notes
    assert "tasks: zero of one class, on which every method scores 100 %" in notes


def test_the_statistics_of_padded_images_are_those_with_the_border(own):
    own()
    x = np.pad(load("four").train_x / 255, ((0, 0), (2, 2), (2, 2), (0, 0)))
    assert implausible(task(0, pad=2, mean=(x.mean(),), std=(x.std(),)), load("four")) is None
    assert implausible(task(0, pad=40, mean=(x.mean(),), std=(x.std(),)), load("four")) is not None


@pytest.mark.parametrize(
    ("tasks", "holds"), [("(0, 1), (2, 3)", True), ("random.sample(range(10), 4), [4]", False), ("{'a', 'b', 'c', 'd'}", False)]
)
def test_a_protocol_that_differs_between_processes_is_found(own, tmp_path, monkeypatch, tasks, holds):
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    (tmp_path / "drawn.py").write_text(
        "import random\nfrom benchsuite.protocol import Protocol, Recipe, Task, register\n"
        f"tasks = [tuple('abcd'.index(c) if isinstance(c, str) else c for c in group) for group in [{tasks}]]\n"
        "tasks = [(label,) for label in tasks[0]] if len(tasks) == 1 else tasks\n"
        "register(Protocol(name='drawn', image=(1, 8, 8), tiers={'smoke': Recipe(backbone='digits', epochs=1)},\n"
        "    tasks=tuple(Task(name=str(i), dataset='digits', classes=tuple(c)) for i, c in enumerate(tasks))))\n"
    )
    assert protocols.find(tmp_path / "drawn.py") == "drawn"
    found = [stable(protocols.get("drawn")).holds for _ in range(1 if holds else 3)]  # four words are in one order of 24
    assert all(found) is holds


def test_the_template_is_sound_and_runs(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-protocol", "my-digits"]) == 0
    assert capsys.readouterr().out == (
        "my-digits.py: a protocol that runs; read it, change it, then run: benchsuite check my-digits.py\n"
    )
    assert main(["check", "./my-digits.py"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("my-digits: 5 tasks x 2 classes of handwritten digits\n")
    assert said.endswith("my-digits: sound\n")
    assert main(["new-protocol", "my-digits"]) == 2
    text = (tmp_path / "my-digits.py").read_text()
    assert "new-protocol" not in text
    (tmp_path / "other.py").write_text(text.replace("my-digits", "other").replace("(1, 8, 8)", "(1, 8, 9)"))
    assert main(["check", "./other.py"]) == 1
    assert "other: 1 check failed" in capsys.readouterr().out


def test_the_photos_of_the_template_work_as_its_comment_says(own, tmp_path, monkeypatch):
    """The commented lines are code."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    assert main(["new-protocol", "mine"]) == 0
    for name in "abcdefghij":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((40, 50), 50 + 10 * i).save(tmp_path / "photos" / name / f"{i}.jpg")
    text = (tmp_path / "mine.py").read_text()
    for line in ("from benchsuite.data", "PHOTOS ="):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    text = text.replace('split("digits", tasks=5)', "split(PHOTOS, tasks=5)").replace("(1, 8, 8)", "(3, 32, 32)")
    (tmp_path / "mine.py").write_text(text.replace('"digits"', '"cacl"'))
    made = protocols.get(protocols.find("mine.py"))
    assert load("photos").train_x.shape == (10, 32, 32, 3)
    assert made.tasks[4].classes == (8, 9)


@pytest.mark.parametrize("name", ["split-digits", "", "a b", "1x", "../x", "é"])
def test_a_name_that_cannot_be_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-protocol", name]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
