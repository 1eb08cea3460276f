"""Runs that are trained by other libraries, or by the user's own code."""
