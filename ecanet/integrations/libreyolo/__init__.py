"""Detectors as LibreYOLO trains them."""

from ecanet.integrations.libreyolo.files import load_model

__all__ = ["load_model"]
