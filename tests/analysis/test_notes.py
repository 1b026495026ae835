"""Notes on results that say little, and on rows that differ in their recipe."""

import pytest
from records import changed, run
from scipy.stats import binom

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.notes import AT_CHANCE, START, at_chance

POINT = int(binom.ppf(0.99, 100, 0.5))  # 62 of 100 test images, two classes


def notes(*runs):
    return leaderboard(runs).footnotes


@pytest.mark.parametrize(("right", "found"), [(50, ["task 0"]), (POINT, ["task 0"]), (POINT + 1, [])])
def test_an_accuracy_that_guessing_gives_is_noticed(right, found):
    one = run(correct=((right, None), (90, 90)))  # what it is later does not matter
    assert at_chance(one) == found
    assert (f"{AT_CHANCE}: finetune (1 of 2 tasks)" in notes(one)) is bool(found)


def test_more_classes_have_a_lower_chance():
    five = [{"name": f"task {i}", "test": 100, "classes": [0, 1, 2, 3, 4]} for i in range(2)]
    assert at_chance(run(correct=((50, None), (50, 25)), tasks=five)) == ["task 1"]


def test_joint_training_counts_at_its_end():
    once = {"iterations": [10], "seconds": {"train": [1.0], "evaluate": [1.0]}}
    assert at_chance(run("joint", correct=((None, None), (90, 50)), **once)) == ["task 1"]


def test_a_task_of_one_class_is_named_and_is_not_at_chance():
    tasks = [{"name": "task 0", "test": 100, "classes": [3]}, {"name": "task 1", "test": 100, "classes": [0, 1]}]
    one = run(correct=((100, None), (100, 90)), tasks=tasks)
    assert at_chance(one) == []
    assert "100 % on tasks of one class (task 0) says nothing of a method" in notes(one)
    assert not any("one class" in note for note in notes(run()))


def test_rows_that_differ_in_their_recipe_are_named_with_the_values():
    plain, other = run(), run("ewc", settings={"epochs": 10, "flip": True, "lr_schedule": "cosine", "order_seed": 3})
    found = notes(plain, other)
    assert "settings differ: flip: True (ewc); not set (finetune)" in found
    assert "settings differ: lr_schedule: cosine (ewc); milestones (finetune)" in found
    assert not any("all seeds share" in note for note in found), "one seed"
    both = [run("ewc", seed, settings={"epochs": 10, "order_seed": 3}) for seed in (1, 2)]
    shared = "all seeds share the order of tasks and classes (order_seed), so intervals do not cover others: ewc"
    assert shared in notes(*both)


def test_one_method_under_two_schedules_has_two_rows_named_by_them():
    board = leaderboard([run(settings={"epochs": 10}), run(settings={"epochs": 10, "lr_schedule": "cosine"})])
    assert sorted(board.accuracy["method"]) == ["finetune", "finetune [lr_schedule=cosine]"]


def test_settings_of_a_schedule_are_compared_under_it_only():
    patience = {"epochs": 10, "lr_schedule": "patience", "validation": 0.1}
    kept = {"kept_epochs": [3, 7]}
    found = notes(run(), run("ewc", settings=patience | {"lr_patience": 2}, **kept), run("si", settings=patience, **kept))
    assert "settings differ: lr_patience: 2 (ewc); 6 (si)" in found
    assert "ewc: kept the state of epoch 3 to 7, of at most 10 a task; its compute is relative to all of them" in found
    assert not any("lr_patience" in note or "kept" in note for note in notes(run(), run("ewc", settings={"epochs": 20})))
    assert not any("lr_patience" in note for note in notes(run(), run("ewc", settings=patience, **kept)))


def test_tasks_of_shuffled_classes_are_other_tasks():
    first = {"epochs": 10, "tasks": 2}
    listed = [run(settings=first), run("ewc", settings=first)]
    shuffled = run("si", settings=first | {"class_order": "shuffled"})
    assert leaderboard(listed).elsewhere == []
    assert leaderboard([*listed, shuffled]).elsewhere == ["si"]


def test_a_note_calls_its_rows_as_a_table_does_and_no_other_word():
    board = leaderboard([changed(run("tuned"), memory_bytes=500_000), run("er")])  # a method called like a word of the notes
    labels = {"tuned": "Tuned (ours)", "er": "Replay"}
    found = {str(note): note for note in board.footnotes}
    said = found["training MB includes stored images, in MB: tuned 0.500"]
    assert said.rows == {"tuned"}
    assert said.calling(labels) == "training MB includes stored images, in MB: Tuned (ours) 0.500"
    (tuning,) = (note for note in board.footnotes if "tune" in note.parts[0])
    assert tuning.rows == {"tuned", "er"}
    assert tuning.calling(labels) == tuning.parts[0] + "Replay, Tuned (ours)"
    assert tuning.calling({}) == tuning
    assert START not in "".join(board.footnotes)
