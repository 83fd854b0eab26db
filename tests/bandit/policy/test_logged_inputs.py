"""What is logged of a decision beside its features: enough to score it again, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from bandit.model.featurize import featurize, rebase
from bandit.policy.logged_inputs import INPUTS, evidence_from_inputs, pack_policy_inputs
from tests.strategies import NOW, candidates_of, law, priors, users


@law
@given(users(min_clusters=2))
def test_packed_inputs_are_those_of_the_candidates_and_the_sums_of_the_whole_profile(user):
    profile, sums, prior = user
    rows = np.arange(len(profile))[1:]
    matrix = np.frombuffer(pack_policy_inputs(profile, sums, rows), "<f8").reshape(-1, len(INPUTS))
    known = candidates_of(profile, sums, prior)
    np.testing.assert_array_equal(matrix[:-1, INPUTS.index("actions")], known.actions[1:])
    np.testing.assert_array_equal(matrix[:-1, INPUTS.index("reward_long")], sums.reward_long[1:])
    assert matrix[-1, INPUTS.index("impressions_long")] == pytest.approx(sums.impressions_long.sum(), rel=1e-12)
    np.testing.assert_array_equal(evidence_from_inputs({"reward_long": matrix[:-1, 6]}, np.full(len(rows), 7.0)).draws_session, 7.0)


@law
@given(users(min_clusters=1), priors())
def test_features_rebased_to_another_prior_are_those_it_would_have_served(user, other):
    profile, sums, prior = user
    served = featurize(profile, sums, prior, NOW, {})
    matrix = np.frombuffer(pack_policy_inputs(profile, sums), "<f8").reshape(-1, len(INPUTS))
    totals = matrix[-1, INPUTS.index("reward_long")], matrix[-1, INPUTS.index("impressions_long")]
    again = rebase(served, sums, totals, profile.topic_ids, other)
    assert again.tobytes() == featurize(profile, sums, other, NOW, {}).tobytes()
    assert rebase(served, sums, totals, profile.topic_ids, prior).tobytes() == served.tobytes()
