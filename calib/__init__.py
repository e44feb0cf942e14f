"""Thresholds from good parts, metrics, and reports."""
