"""``pyro-vsm data prepare | check | show``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

HELP = """Get data sets ready, check them, look at them: prepare, check, show.

Examples:
  pyro-vsm data prepare cifar-fs --data.root CIFAR                 download, verify, decode into the cache
  pyro-vsm data prepare omniglot --data.root OMNIGLOT --data.variant small
  pyro-vsm data check tiered-imagenet --data.root TIERED           compare with what is published
  pyro-vsm data show glyphs --out sheets                           classes, images, identity, contact sheets"""

ACTIONS = {
    "prepare": "Fetch what can be fetched, say where to get the rest, decode into the cache, and show.",
    "check": "Compare checksums and the numbers of classes and images with the published ones.",
    "show": "Print classes, images and identity of each split, and draw contact sheets.",
}


def arguments(parser: ArgumentParser) -> None:
    """A command of its own for each action."""
    from pyro_vsm.data import SOURCES, DataConfig

    actions = parser.add_subcommands(dest="action", required=True)
    for action, text in ACTIONS.items():
        sub = ArgumentParser(description=text)
        sub.add_argument("name", type=str, help=f"One of {', '.join(sorted(SOURCES))}.")
        sub.add_class_arguments(DataConfig, "data", skip={"name"})
        if action == "prepare":
            sub.add_argument("--download", type=bool, default=True, help="Fetch what is missing and can be fetched.")
        if action != "check":
            sub.add_argument("--out", type=str | None, help="Folder for contact sheets; none are drawn without it.")
        actions.add_subcommand(action, sub, help=text)


def run(args: Namespace) -> None:
    """Do what is asked."""
    from pyro_vsm.data import load, prepare

    chosen = args[args.action]
    config = replace(chosen.data, name=chosen.name)
    if args.action == "check":
        prepare.check(config)
        return
    splits = prepare.prepare(config, fetch=chosen.download) if args.action == "prepare" else load(config)
    if chosen.out:
        prepare.draw_sheets(splits, Path(chosen.out))
