"""Verdicts, mismatches, replay files, known failures, reports."""
