"""Detectors on our backbones: evaluation, drawing."""
