"""Figures and the report of a profile."""
