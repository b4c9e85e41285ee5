"""Draw posterior prototypes of one test episode: python experiments/figures/prototypes.py RUN FILE.png."""

import sys

import pyro_vsm
from pyro_vsm import plots
from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.episodes import fixed_episodes, gather


def main(run: str, target: str, data: str = "glyphs", root: str | None = None) -> None:
    """Five test classes, one example each, 200 posterior samples of every prototype."""
    vsm = pyro_vsm.load(run, device="cpu")
    test = load(DataConfig(name=data, root=root)).test
    episodes = fixed_episodes(test, way=5, shot=1, queries=8, episodes=4, seed=3)
    support, query = gather(test, episodes[2:3])
    belief = vsm.infer(support[0], query[0].flatten(0, 1), samples=200)
    labels = belief.probabilities.new_tensor(range(5)).long().repeat_interleave(8)
    names = [test.names[i] for i in episodes.classes[2].tolist()]
    figure = plots.prototype_map(belief.support, belief.query, labels, belief.z, names)
    plots.save(figure, target)
    print(f"accuracy {(belief.probabilities.argmax(-1) == labels).float().mean():.2f}; wrote {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
