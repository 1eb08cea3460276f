"""Costs of models: parameters, multiply-adds, memory and time."""

from ecanet.models.counts import count_macs, count_parameters
from ecanet.profiling.memory import activation_bytes
from ecanet.profiling.profile import ModelProfile, ModelSpec, profile_models
from ecanet.profiling.speed import measure_costs, measure_speeds

__all__ = [
    "ModelProfile",
    "ModelSpec",
    "activation_bytes",
    "count_macs",
    "count_parameters",
    "measure_costs",
    "measure_speeds",
    "profile_models",
]
