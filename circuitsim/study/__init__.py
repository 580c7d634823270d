"""Experiments on an existing engine: from a file to a record."""

from circuitsim.study.bench import Bench, prepare
from circuitsim.study.experiment import ExperimentSpec, load_experiment
from circuitsim.study.run import Watcher, resume_experiment, run_experiment

__all__ = [
    "Bench",
    "ExperimentSpec",
    "Watcher",
    "load_experiment",
    "prepare",
    "resume_experiment",
    "run_experiment",
]
