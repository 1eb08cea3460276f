"""One run: a model trained from its seed to its record, by one loop for all tasks."""
