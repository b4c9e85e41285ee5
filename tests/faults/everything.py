"""All faults, in groups, each with how often it is made in full and in the ordinary test run."""

from __future__ import annotations

from . import checkpoints, data, numerics, processes

GROUPS = {
    "Processes and disks": processes.FAULTS,
    "Checkpoints and run folders": checkpoints.FAULTS,
    "Data": data.FAULTS,
    "Numbers": numerics.FAULTS,
}
