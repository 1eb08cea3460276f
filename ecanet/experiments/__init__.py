"""Studies of many runs: queue, workers, statistics, report.

What a command needs is imported from its own module: most of them need no torch.
"""
