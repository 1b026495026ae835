from records import run as record_of

from benchsuite.execution.messages import Begun, Done
from benchsuite.execution.progress import Display
from benchsuite.training.events import Event


def test_a_run_counts_as_done_when_it_has_its_record(capsys):
    jobs = [record_of("ewc", seed=seed).job for seed in (1, 2)]
    with Display() as display:
        display(Begun(runs=2, of=2, slots=1))
        for job in jobs:
            display(Event(job=job, stage=1, stages=2, epoch=3, epochs=3, loss=0.5))
            assert "runs]" not in capsys.readouterr().err.splitlines()[-1]
            display(Done(job))
    assert capsys.readouterr().err.splitlines() == [f"{jobs[1]}: done  [2/2 runs]"]


def test_of_a_single_run_nothing_is_counted(capsys):
    with Display(1) as display:
        display(Done(record_of("ewc").job))
    assert capsys.readouterr().err == ""
