"""One run: a model trained from its seed to its record, through Lightning."""
