"""Options of Vowpal Wabbit under which the exported weights predict what it predicts itself; all others are refused.

The export is one weight a feature, a constant, and one a product of two features. Each option of this list was measured to keep both
predictions within 1e-6 of each other (`tests/bandit/model/test_learner_options.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

FLAGS = frozenset(
    {
        *("--coin", "--ftrl", "--pistol", "--freegrad", "--sgd", "--adaptive", "--invariant", "--normalized", "--adax"),
        *("--bfgs", "--conjugate_gradient", "--noconstant", "--holdout_off", "-c", "--cache", "-k", "--kill_cache"),
    }
)
NUMBERS = frozenset(
    {
        *("-l", "--learning_rate", "--power_t", "--initial_t", "--decay_learning_rate", "--ftrl_alpha", "--ftrl_beta"),
        *("-C", "--constant", "--initial_weight", "--quantile_tau", "--expectile_q"),
    }
)
COUNTS = frozenset({"--passes", "--holdout_period", "--holdout_after", "--early_terminate", "--examples"})
LOSSES = ("squared", "classic", "quantile", "expectile")

_OURS = "is set by Query Rewards itself"
_FEATURES = "makes features that the exported model does not have"
_STRUCTURE = "learns a model that one weight a feature cannot represent"
_PENALTY = "penalises weights at prediction, which the exported weights do not show"
_LABELS = "expects labels of another kind than costs"
_WHY = {
    **dict.fromkeys(("-b", "--bit_precision", "--random_seed", "--quiet", "-d", "--data", "--hash", "--hash_seed"), _OURS),
    **dict.fromkeys(("-q", "--quadratic", "--cubic", "--interactions", "--leave_duplicate_interactions", "--permutations"), _FEATURES),
    **dict.fromkeys(("--ngram", "--skips", "--affix", "--spelling", "--dictionary", "--redefine", "--feature_limit"), _FEATURES),
    **dict.fromkeys(("--ignore", "--ignore_linear", "--keep", "--feature_mask"), "takes features away that the exported model has"),
    **dict.fromkeys(("--nn", "--boosting", "--lrq", "--lrqfa", "--autolink", "--stage_poly", "--bootstrap", "--rank"), _STRUCTURE),
    **dict.fromkeys(("--OjaNewton", "--svrg", "--cbzo", "--ksvm", "--lda", "--l2_state", "--l1_state"), _STRUCTURE),
    **dict.fromkeys(("--l1", "--l2"), _PENALTY),
    **dict.fromkeys(("--link", "--min_prediction", "--max_prediction"), "changes predictions after the weights have been summed"),
    **dict.fromkeys(("-t", "--testonly", "--noop"), "learns nothing"),
    **dict.fromkeys(("--oaa", "--cb", "--cb_adf", "--cb_explore_adf", "--csoaa", "--active", "--search"), _LABELS),
    **dict.fromkeys(("-f", "-i", "-p", "--cache_file", "--readable_model", "--initial_regressor", "--final_regressor"), "names a file"),
}


def refusal(options: str) -> str | None:
    """Why these options cannot be used, None when they can."""
    words = iter(options.split())
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            return f"{word!r} belongs to no option"
        if name in FLAGS:
            problem = "takes no value" if equals else None
        elif name in NUMBERS or name in COUNTS or name == "--loss_function":
            problem = _bad_value(name, value if equals else next(words, ""))
        else:
            problem = _WHY.get(name, "is not among those that the exported weights are known to represent")
        if problem:
            return f"{name} {problem}; possible are {', '.join(_possible())}"
    return None


def _bad_value(name: str, value: str) -> str | None:
    if name == "--loss_function":
        return None if value in LOSSES else f"is {value!r}, expected one of {', '.join(LOSSES)}: others predict no cost"
    if name in COUNTS:
        return None if value.isascii() and value.isdecimal() else f"is {value!r}, expected a whole number"
    try:
        finite = abs(float(value)) < float("inf")
    except ValueError:
        finite = False
    return None if finite else f"is {value!r}, expected a number"


def _possible() -> Iterator[str]:
    yield from sorted({*FLAGS, *NUMBERS, *COUNTS, "--loss_function"}, key=lambda name: name.lstrip("-").lower())
