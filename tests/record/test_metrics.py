import numpy as np
import pytest
from records import record_of

from benchsuite.record import metrics
from benchsuite.record.schema import Job

NAN = np.nan
R = np.array([[90.0, NAN, NAN], [80.0, 70.0, NAN], [85.0, 64.0, 60.0]])
JOINT = np.array([[NAN, NAN, NAN], [NAN, NAN, NAN], [90.0, 80.0, 70.0]])


def test_a_matrix_computed_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((85 + 64 + 60) / 3)
    assert metrics.backward_transfer(R) == pytest.approx((-5 - 6) / 2)
    assert metrics.forgetting(R) == pytest.approx((5 + 6) / 2)
    assert metrics.learning_accuracy(R) == pytest.approx(220 / 3)
    assert metrics.accuracy_after_each_task(R) == pytest.approx([90, 75, 209 / 3])
    assert metrics.anytime_accuracy(R) == pytest.approx((90 + 75 + 209 / 3) / 3)


def test_forgetting_counts_from_the_best_row_and_backward_transfer_from_the_first():
    rising = np.array([[50.0, NAN, NAN], [80.0, 70.0, NAN], [60.0, 75.0, 60.0]])
    assert metrics.backward_transfer(rising) == pytest.approx((10 + 5) / 2)
    assert metrics.forgetting(rising) == pytest.approx((20 - 5) / 2)


def test_forgetting_ignores_the_untrained_head():
    measured_before = np.array([[50.0, 99.0], [50.0, 70.0]])
    assert metrics.forgetting(measured_before) == 0


def test_backward_transfer_divides_by_the_tasks_that_can_be_forgotten():
    assert metrics.backward_transfer(np.array([[80.0, 0.0], [78.0, 90.0]])) == -2


def test_forward_gain_leaves_the_first_task_out():
    individual = np.array([[10.0, NAN, NAN], [NAN, 75.0, NAN], [NAN, NAN, 58.0]])
    assert metrics.forward_gain(R, individual) == pytest.approx((-5 + 2) / 2)
    assert metrics.forward_gain(R, R) == 0


def test_what_a_single_task_cannot_show_is_nan():
    one = np.array([[80.0]])
    assert metrics.average_accuracy(one) == metrics.learning_accuracy(one) == metrics.anytime_accuracy(one) == 80
    assert np.isnan([metrics.backward_transfer(one), metrics.forgetting(one), metrics.forward_gain(one, one)]).all()


def test_what_was_not_measured_is_nan():
    assert metrics.average_accuracy(JOINT) == 80
    assert np.isnan([metrics.backward_transfer(JOINT), metrics.forgetting(JOINT), metrics.learning_accuracy(JOINT)]).all()
    assert np.isnan([metrics.anytime_accuracy(JOINT), metrics.forward_gain(JOINT, R)]).all()
    assert np.isnan(metrics.forward_gain(R, JOINT))
    assert np.isnan(metrics.forward_gain(JOINT[1:, 1:], R[:2, :2]))  # though the one gain of two tasks is measured
    np.testing.assert_array_equal(metrics.accuracy_after_each_task(JOINT), [NAN, NAN, 80])


def test_accuracy_matrix_divides_by_each_tasks_own_test_images():
    record = record_of(
        job=Job(protocol="p", tier="smoke", method="m", seed=1, precision="fp32", settings={}),
        tasks=[{"name": "a", "test": 10}, {"name": "b", "test": 40}],
        correct=[[8, None], [5, 30]],
        stored=[None, {"weights": 1, "heads": 1, "masks": 0, "other": 0}],
    )
    np.testing.assert_array_equal(record.R, [[80, NAN], [50, 75]])
    assert list(record.matrix().index) == list(record.matrix().columns) == ["a", "b"]
    np.testing.assert_array_equal(record.matrix(), record.R)
    assert (record.accuracy, record.bwt, record.forgetting, record.learning_accuracy) == (62.5, -30, 30, 77.5)
    assert record.anytime_accuracy == (80 + 62.5) / 2
    assert record.megabytes == 2e-6
