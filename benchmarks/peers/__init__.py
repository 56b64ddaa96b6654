"""The contestants: what they serve is in model.py, how they are started in contestants.py."""
