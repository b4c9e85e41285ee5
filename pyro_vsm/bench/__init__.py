"""Measurements of what a run costs, each beside the floor measured in the same run (``pyro-vsm bench``)."""
