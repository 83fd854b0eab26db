"""Every error carries its values, also out of a worker process."""

from __future__ import annotations

import inspect
import pickle

import pytest

from bandit import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.QueryRewardsError)]


def example(kind: type[errors.QueryRewardsError]) -> errors.QueryRewardsError:
    """An error whose arguments are numbers, texts and counts as they are declared."""
    if not any("__init__" in vars(base) for base in kind.__mro__ if base.__module__ == errors.__name__):
        return kind("it failed")
    parameters = inspect.signature(kind).parameters.values()
    return kind(**{parameter.name: _value(parameter) for parameter in parameters})


def _value(parameter: inspect.Parameter) -> object:
    declared = str(parameter.annotation)
    if declared.startswith("dict"):
        return {"a reason": 3}
    return 0.25 if "float" in declared else 3 if "int" in declared else f"the {parameter.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_out_of_another_process_as_it_was_raised(kind):
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))
