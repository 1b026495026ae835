"""Settings as dataclass fields: bounds, neutral values, and what of them is part of a run's identity."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest
from msgspec import structs

from benchsuite.checks.verify import check_job
from benchsuite.errors import UserError
from benchsuite.fields import check, convert, neutral_values, setting
from benchsuite.method import Method, Preset, methods
from benchsuite.protocol import Recipe, protocols
from benchsuite.record.store import read_all
from benchsuite.training.settings import method_of, recipe_of, resolve

PUBLISHED = read_all(Path(__file__).parents[1] / "results")


@dataclass
class Bounded:
    lr: float = setting(1.0, above=0)
    strength: float = setting(1.0, least=0)
    epochs: int | None = setting(1, least=1)
    scale: float = setting(2.0, above=1)
    share: float = setting(0.5, above=0, most=1)
    drop: float = setting(0.5, least=0, below=1)
    decay: float = setting(0.5, least=0, most=1)
    inner: float = setting(0.5, above=0, below=1)
    top: float = setting(0.0, most=3)
    under: float = setting(0.0, below=3)
    ranks: tuple[int, ...] = setting((), least=1)
    word: float | str = setting("all", least=1)
    free: float = 1.0


def test_a_choice_of_numbers_is_read_from_text():
    assert convert("bits", "4", Literal[4, 6, 8]) == 4
    assert convert("bits", 4, Literal[4, 6, 8]) == 4
    with pytest.raises(UserError, match="bits must be one of 4, 6, 8, got '9'"):
        convert("bits", "9", Literal[4, 6, 8])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lr", 0, "lr must be positive, got 0"),
        ("lr", -1, "lr must be positive, got -1"),
        ("strength", -1, "strength must not be negative, got -1"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("scale", 1, "scale must be above 1, got 1"),
        ("share", 0, "share must lie in (0, 1], got 0"),
        ("share", 1.5, "share must lie in (0, 1], got 1.5"),
        ("drop", 1, "drop must lie in [0, 1), got 1"),
        ("decay", 1.5, "decay must lie in [0, 1], got 1.5"),
        ("inner", 1, "inner must lie in (0, 1), got 1"),
        ("top", 4, "top must be at most 3, got 4"),
        ("under", 3, "under must be below 3, got 3"),
        ("ranks", (4, 0), "ranks must be at least 1, got (4, 0)"),
        ("lr", float("nan"), "lr must be positive, got nan"),
        ("word", 0, "word must be at least 1, got 0"),
        ("free", -(2.0**64), "free must be at most 2^63 - 1, got -1.8446744073709552e+19"),
    ],
)
def test_a_value_out_of_bounds_is_named(name, value, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the whole text is compared
        check(Bounded(**{name: value}))
    assert str(error.value) == words


@pytest.mark.parametrize(
    "values",
    [{}, {"strength": 0}, {"epochs": None}, {"share": 1, "drop": 0, "decay": 1}, {"top": 3}, {"ranks": (1, 2)}, {"free": -5}],
)
def test_a_value_on_a_closed_bound_or_without_bounds_passes(values):
    check(Bounded(**values))


@dataclass
class Own(Method):
    """A method whose __post_init__ does not call the base's."""

    share: float = setting(0.5, above=0, most=1)

    def __post_init__(self):
        self.kept = []


def test_a_method_is_checked_even_if_its_own_post_init_does_not(monkeypatch):
    methods.all()
    monkeypatch.setattr(Own, "name", "own")
    monkeypatch.setitem(methods._known, "own", Own)
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 2"):
        method_of("own", {"share": 2})
    with pytest.raises(UserError, match=r"own: share must lie in \(0, 1\], got 2"):
        resolve("split-digits", "smoke", "own", 1, overrides={"share": 2})
    assert method_of("own", {"share": 1}).kept == []


NEUTRAL = neutral_values(Recipe)


def resolved(job, **changes):
    """The job as this version resolves it from its settings, those that it leaves out being neutral, and `changes`."""
    overrides = {**NEUTRAL, **job.settings, **changes}
    again = resolve(job.protocol, job.tier, job.method, job.seed, overrides=overrides, precision=job.precision)
    return structs.replace(again, data=job.data)


def test_published_records_keep_their_identity():
    assert len(PUBLISHED) > 70
    for record in PUBLISHED:
        assert resolved(record.job).folder == record.job.folder
        assert not [remark for remark in check_job(record.job) if "did not exist" in remark]


def extended(base, **declared):
    """A subclass with one more field."""
    name, value = next(iter(declared.items()))
    made = type(base.__name__, (base,), {name: value, "__annotations__": {name: float}, "__doc__": base.__doc__})
    return dataclass(frozen=True, kw_only=True)(made) if base is Recipe else dataclass(eq=False)(made)


@pytest.fixture
def one_more(monkeypatch):
    """Adds a field to the recipe and one to a method, as a later version would."""

    def add(method, **metadata):
        recipe = extended(Recipe, warmup=setting(0.0, **metadata))
        for known in protocols.all().values():
            tiers = {tier: recipe(**{f.name: getattr(r, f.name) for f in fields(r)}) for tier, r in known.tiers.items()}
            monkeypatch.setitem(protocols._known, known.name, replace(known, tiers=tiers))
        for module in ("benchsuite.checks.verify", "benchsuite.training.settings"):
            monkeypatch.setattr(f"{module}.Recipe", recipe)
        monkeypatch.setitem(methods._known, method, extended(methods.get(method), spice=setting(0.5, **metadata)))
        monkeypatch.setattr(methods, "_modified", {})

    return add


SAMPLE = {record.job.method: record.job for record in PUBLISHED if record.job.base == "cacl"}


def test_a_new_setting_with_a_neutral_value_changes_no_identity(one_more):
    one_more("cacl", neutral=0.0)
    assert len(SAMPLE) > 1, "one of them under a modifier"
    for job in SAMPLE.values():
        assert resolved(job, spice=0).folder == job.folder
        assert not [remark for remark in check_job(job) if "did not exist" in remark]
        # A record from before the field is read at its neutral value, not at its default, which differs.
        assert method_of(job.method, job.settings).spice == 0.0
        assert recipe_of(job.settings).warmup == 0.0
        # Away from the neutral value the setting counts, and so does a default that is not neutral.
        for change in ({"warmup": 2, "spice": 0}, {}):
            assert resolved(job, **change).folder != job.folder


def test_a_new_setting_without_one_changes_identities(one_more):
    """The control of the test above."""
    one_more("cacl")
    job = SAMPLE["cacl"]
    assert resolved(job).folder != job.folder
    assert {remark.split()[0] for remark in check_job(job) if "did not exist" in remark} == {"spice", "warmup"}


def test_a_setting_back_at_its_neutral_value_has_no_origin():
    job = resolve("split-digits", "smoke", "finetune", 1, overrides={"width": 1})
    assert "width" not in job.settings | job.origins
    assert neutral_values(Recipe).items() >= {"width": 1.0, "init": "default"}.items()
    assert recipe_of(job.settings).width == 1
    assert recipe_of({**job.settings, "width": 2}).width == 2


def test_a_search_that_chose_a_neutral_value_stays_on_record(monkeypatch):
    plain = resolve("split-digits", "smoke", "er", 1)
    tuned = Preset(protocol="split-digits", values={"sample_size": None}, origin="tuned: a search")
    monkeypatch.setattr(methods.get("er"), "settings", (*methods.get("er").settings, tuned))
    job = resolve("split-digits", "smoke", "er", 1)
    assert (job.config, job.settings) == (plain.config, plain.settings)
    assert job.origins == {**plain.origins, "sample_size": "tuned: a search"}
