"""Measurements of the suite itself, each a script: python -m benchsuite.measure.NAME --help."""
