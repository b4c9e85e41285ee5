"""Figures: learning curves, calibration, comparisons, and what the model believes of an episode.

Every function takes data and returns a `matplotlib.figure.Figure` that belongs to no window and needs no
closing; `save` writes it. One style for all, applied within each call only: Okabe and Ito's colours ("Color
Universal Design", 2008) together with markers and line styles, so that figures can be read in grey too.
"""

from pyro_vsm.plots.beliefs import (
    histograms,
    picture_grid,
    probability_bars,
    rejection_curve,
    spread_against_error,
    spread_by_shot,
    uncertainty_by_shot,
)
from pyro_vsm.plots.prototypes import prototype_map, prototype_panels
from pyro_vsm.plots.recall import addressing_heatmap, recalled_entries
from pyro_vsm.plots.results import (
    accuracy_by_shot,
    accuracy_by_system,
    confusion_matrix,
    reliability_diagram,
)
from pyro_vsm.plots.style import save
from pyro_vsm.plots.tables import TablePoint, table_chart
from pyro_vsm.plots.training import learning_curves, objective_by_run, objective_terms

__all__ = [
    "TablePoint",
    "accuracy_by_shot",
    "accuracy_by_system",
    "addressing_heatmap",
    "confusion_matrix",
    "histograms",
    "learning_curves",
    "objective_by_run",
    "objective_terms",
    "picture_grid",
    "probability_bars",
    "prototype_map",
    "prototype_panels",
    "recalled_entries",
    "rejection_curve",
    "reliability_diagram",
    "save",
    "spread_against_error",
    "spread_by_shot",
    "table_chart",
    "uncertainty_by_shot",
]
