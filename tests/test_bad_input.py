"""Every operator refuses what `refusals.py` lists, on the backends that run on any machine."""

import pytest
from cases import CASES, UPDATE_CASES
from refusals import (
    BACKWARD,
    FORWARD,
    UPDATE,
    check_backward_refuses,
    check_forward_refuses,
    check_update_refuses_and_changes_nothing,
    each,
)

from scratchnet.backends import BACKENDS, get_backend

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def test_every_operator_refuses_something():
    assert set(CASES) == set(FORWARD) == set(BACKWARD)
    assert set(UPDATE_CASES) == set(UPDATE)


@every_backend
@each(FORWARD)
def test_forward_refuses(operator, argument, value, error, words, backend):
    check_forward_refuses(get_backend(backend), operator, argument, value, error, words)


@every_backend
@each(BACKWARD)
def test_backward_refuses(operator, argument, value, error, words, backend):
    check_backward_refuses(get_backend(backend), operator, argument, value, error, words)


@every_backend
@each(UPDATE)
def test_update_refuses_and_changes_nothing(operator, argument, value, error, words, backend):
    check_update_refuses_and_changes_nothing(
        get_backend(backend), operator, argument, value, error, words
    )


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="backend must be one of reference, cpu.* got 'tpu'"):
        get_backend("tpu")
