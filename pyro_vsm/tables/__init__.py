"""Tables of results by one command: definition, trainings, scores, lines, files. Start reading with `make`."""

from pyro_vsm.tables.definition import read_table
from pyro_vsm.tables.make import make_table

__all__ = ["make_table", "read_table"]
