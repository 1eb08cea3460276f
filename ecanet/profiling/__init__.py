"""What a model costs: parameters, multiply-adds, memory, measured time."""

from ecanet.profiling.counts import count_macs, count_parameters
from ecanet.profiling.speed import measure_costs

__all__ = ["count_macs", "count_parameters", "measure_costs"]
