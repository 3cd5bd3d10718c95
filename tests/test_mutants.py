"""The suite bites: every mistake planted in a backward pass is caught by its checks."""

from collections import Counter

import mutants
import pytest
from mutants import MUTANTS, UPDATE_MUTANTS

from scratchnet.backends import OPERATORS, UPDATES, reference


def test_every_operator_has_mutants():
    counts = Counter(mutant.operator for mutant in (*MUTANTS, *UPDATE_MUTANTS))
    assert all(counts[name] >= 3 for name in (*OPERATORS, *UPDATES))


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_right_operator_passes(operator):
    assert mutants.rejections(reference, operator) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_caught(mutant):
    ops = mutants.load(mutant.operator, mutant.replacements)
    assert mutants.rejections(ops, mutant.operator), f"nothing noticed that {mutant.mistake}"


@pytest.mark.parametrize("mutant", UPDATE_MUTANTS, ids=str)
def test_mutant_of_an_update_is_caught(mutant):
    ops = mutants.load("updates", mutant.replacements)
    assert mutants.update_rejections(ops, mutant.operator)


def test_a_snippet_that_is_gone_is_an_error():
    with pytest.raises(LookupError, match="bring the mutant up to date"):
        mutants.load("relu", (("no such line", ""),))
