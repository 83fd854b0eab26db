"""Ways to value a policy on the log of another one, one per file. `ESTIMATORS` names them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bandit.estimators.clipped import CLIPPED
from bandit.estimators.dm import DM
from bandit.estimators.dr import DR
from bandit.estimators.ips import IPS
from bandit.estimators.pseudo_inverse import PSEUDO_INVERSE
from bandit.estimators.sndr import SNDR
from bandit.estimators.snips import SNIPS
from bandit.estimators.state import Estimator
from bandit.estimators.switch import SWITCH

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {estimator.name: estimator for estimator in (DM, IPS, SNIPS, DR, SNDR, CLIPPED, SWITCH, PSEUDO_INVERSE)}
)
