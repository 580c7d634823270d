"""Phases, estimators, costs, optimisers and the training loop."""

from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.cost import Cost
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.dyadic_bp import DyadicBP
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradcheck import GradientRow, check_gradients
from circuitsim.learning.gradient import Gradient, alignment, local_rule
from circuitsim.learning.optimiser import Optimiser, OptimiserSpec
from circuitsim.learning.phases import Phases
from circuitsim.learning.training import Samples, Trainer, accuracy

__all__ = [
    "EP",
    "Adjoint",
    "AsymEP",
    "Cost",
    "Dyadic",
    "DyadicBP",
    "Estimator",
    "Gradient",
    "GradientRow",
    "Optimiser",
    "OptimiserSpec",
    "Phases",
    "Samples",
    "Trainer",
    "accuracy",
    "alignment",
    "check_gradients",
    "local_rule",
]
