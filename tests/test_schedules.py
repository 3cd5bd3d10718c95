"""Learning rates over the steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import ConstantSchedule, CosineSchedule, StepSchedule


def test_constant():
    assert [ConstantSchedule(0.3)(step) for step in (0, 1, 10**6)] == [0.3] * 3


def test_steps_by_hand():
    schedule = StepSchedule(0.8, every=3, factor=0.5)
    expected = [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    assert [schedule(step) for step in range(7)] == pytest.approx(expected)


def test_cosine_by_hand():
    schedule = CosineSchedule(1.0, steps=6, warmup=2)
    expected = [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]
    assert [schedule(step) for step in range(8)] == pytest.approx(expected)


@given(
    lr=st.floats(1e-6, 10),
    steps=st.integers(1, 200),
    warmup_share=st.floats(0, 1),
)
def test_cosine_rises_then_falls_and_stays_within_its_bounds(lr, steps, warmup_share):
    warmup = int(steps * warmup_share)
    schedule = CosineSchedule(lr, steps, warmup)
    rates = [schedule(step) for step in range(steps + 3)]
    assert all(0 <= rate <= lr * (1 + 1e-12) for rate in rates)
    assert rates[warmup] == pytest.approx(lr)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[steps + 1 :] == pytest.approx([0, 0], abs=1e-12 * lr)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantSchedule(math.nan), "ConstantSchedule: lr must be a number"),
        (lambda: ConstantSchedule(-1), "ConstantSchedule: lr must be a number of at least 0"),
        (lambda: ConstantSchedule("0.1"), "ConstantSchedule: lr must be a number"),
        (lambda: StepSchedule(math.inf, 3), "StepSchedule: lr must be a number"),
        (lambda: StepSchedule(0.1, 0), "StepSchedule: every must be a whole number of at least 1"),
        (lambda: StepSchedule(0.1, 3, -1), "StepSchedule: factor must be a number"),
        (lambda: CosineSchedule(0.1, 0), "CosineSchedule: steps must be a whole number"),
        (lambda: CosineSchedule(0.1, 5, 6), "warmup must be a number of at least 0 and at most 5"),
        (lambda: CosineSchedule(0.1, 5, -1), "warmup must be a number of at least 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
