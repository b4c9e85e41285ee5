"""``pyro-vsm train``."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from pyro_vsm.errors import UserError

HELP = """Train systems under one recipe and compare them on the same test episodes.

Examples:
  pyro-vsm train                                           the embedded glyphs, on whatever device is here
  pyro-vsm train --data.name folder --data.root PICTURES   your own tree with one folder a class
  pyro-vsm train --config experiments/mini_imagenet/conv4_1shot.yaml --data.root MINI_IMAGENET
  pyro-vsm train --model.prior_z empirical_bayes --model.posterior_z conjugate
  pyro-vsm train --resume runs/glyphs-5way-1shot           go on after an interruption
  pyro-vsm train --print_config                            every setting, as YAML to start from"""


def arguments(parser: ArgumentParser) -> None:
    """Every setting of a run."""
    from pyro_vsm.config import Config

    parser.add_argument("--config", action="config", help="YAML file with settings; options after it override.")
    parser.add_argument("--out", type=str | None, help="Run folder; by default a new one under runs/.")
    parser.add_argument("--resume", type=str | None, metavar="RUN", help="Go on with this run, with its settings.")
    parser.add_argument("--force", action="store_true", help="Resume although configuration or data differ.")
    parser.add_class_arguments(Config, None)


def run(args: Namespace) -> None:
    """Train; ends with status 130 if interrupted."""
    from pyro_vsm import jobs
    from pyro_vsm.config import Config

    if args.resume and args.out:
        raise UserError("--out has no place beside --resume, which goes on in the folder of the run; leave it out")
    config = Config(**{k: args[k] for k in Config.__dataclass_fields__})
    out = args.resume or args.out
    if jobs.train(config, out, resume=bool(args.resume), force=args.force) is None:
        raise SystemExit(130)
