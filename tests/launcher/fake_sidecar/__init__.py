"""Stands in for the real package: says how it was called, or answers like a supervisor with its server."""
