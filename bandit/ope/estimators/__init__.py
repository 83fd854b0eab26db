"""Ways to value a policy on the log of another one, one per file. `ESTIMATORS` names them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bandit.ope.estimators.clipped import CLIPPED
from bandit.ope.estimators.dm import DM
from bandit.ope.estimators.dr import DR
from bandit.ope.estimators.ips import IPS
from bandit.ope.estimators.pseudo_inverse import PSEUDO_INVERSE
from bandit.ope.estimators.sndr import SNDR
from bandit.ope.estimators.snips import SNIPS
from bandit.ope.estimators.state import Estimator
from bandit.ope.estimators.switch import SWITCH

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {estimator.name: estimator for estimator in (DM, IPS, SNIPS, DR, SNDR, CLIPPED, SWITCH, PSEUDO_INVERSE)}
)
