"""Arguments that several commands share."""

from __future__ import annotations

from jsonargparse import ArgumentParser


def protocol_arguments(parser: ArgumentParser) -> None:
    """How to evaluate trained models, and where the results go."""
    from pyro_vsm.config import EvaluationConfig
    from pyro_vsm.cross_domain import DataChoice

    parser.add_class_arguments(EvaluationConfig, "evaluation")
    parser.add_class_arguments(DataChoice, "data")
    parser.add_argument("--out", type=str, default="evaluation", help="Folder for tables and per-episode results.")
    model_arguments(parser)


def model_arguments(parser: ArgumentParser) -> None:
    """Where to compute, and whose code a checkpoint may use (read by ``cli.main``)."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    parser.add_argument(
        "--allow-module", type=str, nargs="+", default=[], help="Modules of yours that define parts of the model."
    )
