"""Phases, estimators, costs, optimisers and the training loop."""

from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.cost import Cost
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.dyadic_bp import DyadicBP
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradcheck import GradientRow, check_gradients, check_on_substrate
from circuitsim.learning.gradient import Gradient, alignment, local_rule
from circuitsim.learning.in_the_loop import SubstratePhases, SubstrateTrainer
from circuitsim.learning.optimiser import Optimiser, OptimiserSpec
from circuitsim.learning.phases import Phases
from circuitsim.learning.scores import Accuracy, RmsError, Score, score_of
from circuitsim.learning.training import Samples, Trainer

__all__ = [
    "EP",
    "Accuracy",
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
    "RmsError",
    "Samples",
    "Score",
    "SubstratePhases",
    "SubstrateTrainer",
    "Trainer",
    "alignment",
    "check_gradients",
    "check_on_substrate",
    "local_rule",
    "score_of",
]
