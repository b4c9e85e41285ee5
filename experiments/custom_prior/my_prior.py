"""A prior of one's own: the worked example of docs/your_own_prior.md."""

import pyro.distributions as dist

from pyro_vsm.networks import Positive
from pyro_vsm.priors import PriorZ


class LaplacePriorZ(PriorZ):
    """``p(z|m) = Laplace(m, b)``: most prototypes close to what is recalled, a few far away; b is learned."""

    def __init__(self, dim, *, scale=0.5):
        super().__init__(dim)
        self.scale = Positive(scale, dim)  # one b a feature

    def forward(self, m, task):
        return dist.Laplace(m, self.scale().expand_as(m)).to_event(1)
