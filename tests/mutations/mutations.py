"""The list: one wrong line each, of the kind that runs, trains and looks plausible."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One error.

    Attributes:
        what: in words.
        file: in the package.
        old: occurs exactly once in the file.
        new: replaces it.
        tests: files in tests/core or tests that are run; the first that fails is enough.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


EXACT = ("test_exactness.py",)
MEMORY = ("test_memory.py",)
DENSITY = ("test_posteriors.py", "test_priors.py")
GENERATIVE = ("test_generative.py",)
BASELINES = ("test_baselines.py",)
SYSTEMS = ("test_systems.py",)

MUTATIONS = [
    # objectives
    Mutation(
        "sign of the guide's term in the KL's gradient",
        "objectives.py",
        "surrogate = surrogate - entropy.sum()",
        "surrogate = surrogate + entropy.sum()",
        EXACT,
    ),
    Mutation(
        "sign of the KL in the value",
        "objectives.py",
        "(_total(guide_trace) - log_p).detach()",
        "(-_total(guide_trace) - log_p).detach()",
        EXACT,
    ),
    Mutation(
        "score term of the addresses dropped",
        "objectives.py",
        "surrogate = surrogate + (_centred(signal, self.num_particles) * score).sum()",
        "surrogate = surrogate + 0 * score.sum()",
        EXACT,
    ),
    Mutation(
        "baseline includes the own particle",
        "objectives.py",
        "return (signal - signal.mean(PARTICLES, keepdim=True)) * (particles / (particles - 1))",
        "return signal - signal.mean(PARTICLES, keepdim=True)",
        EXACT,
    ),
    Mutation(
        "importance-weighted bound without its 1/P",
        "objectives.py",
        "bound = log_w.logsumexp(0) - math.log(P)",
        "bound = log_w.logsumexp(0)",
        EXACT,
    ),
    Mutation(
        "mean of logs for log of mean in the importance-weighted bound",
        "objectives.py",
        "bound = log_w.logsumexp(0) - math.log(P)",
        "bound = log_w.mean(0)",
        EXACT,
    ),
    Mutation(
        "VIMCO's baseline includes the own weight",
        "objectives.py",
        "others = (log_w.sum(0) - log_w) / (P - 1)",
        "others = log_w.mean(0).expand(log_w.shape)",
        EXACT,
    ),
    # model
    Mutation(
        "KL weight on the model only",
        "model.py",
        'with weighted(self.beta_z):\n                pyro.sample("z", self._q_z',
        'with nullcontext():\n                pyro.sample("z", self._q_z',
        ("test_model.py",),
    ),
    Mutation(
        "m under the KL weight of z",
        "model.py",
        "with weighted(self.beta_m):",
        "with weighted(self.beta_z):",
        ("test_model.py",),
    ),
    Mutation(
        "logits averaged instead of probabilities",
        "model.py",
        "total + logits.softmax(-1).sum(0)\n            left -= now * of_each\n        return total / samples",
        "total + logits.sum(0)\n            left -= now * of_each\n        return (total / samples).softmax(-1)",
        EXACT,
    ),
    Mutation(
        "the second of a pair opposite to something else than the mean",
        "sampling.py",
        "q.mean.expand_as(z).to(z.dtype), 2.0)",
        "q.mean.expand_as(z).to(z.dtype), 1.0)",
        ("test_sampling.py", "test_model.py"),
    ),
    Mutation(
        "strata in the same order for every class",
        "sampling.py",
        "torch.rand(*batch, number, device=logits.device).argsort(-1)",
        "torch.rand(number, device=logits.device).argsort(-1).expand(*batch, number)",
        ("test_sampling.py",),
    ),
    # densities
    Mutation(
        "sigma for sigma squared in the mixture's density",
        "distributions.py",
        "precision = self.scale.square().reciprocal()",
        "precision = self.scale.reciprocal()",
        DENSITY,
    ),
    Mutation(
        "factor 1/2 missing in the mixture's density",
        "distributions.py",
        "return constant - 0.5 * square",
        "return constant - square",
        DENSITY,
    ),
    Mutation(
        "components not detached in the score of the addresses",
        "distributions.py",
        "self.logits + components.detach()",
        "self.logits + components",
        EXACT,
    ),
    Mutation(
        "Woodbury's identity with the wrong sign",
        "distributions.py",
        "square = (gap.square() / self.diag).sum(-1) - white.square().sum(-1)",
        "square = (gap.square() / self.diag).sum(-1) + white.square().sum(-1)",
        DENSITY,
    ),
    Mutation(
        "conjugate posterior believes in one observation however many there are",
        "conjugate.py",
        "total = diag + noise / shots  # S",
        "total = diag + noise  # S",
        ("test_posteriors.py", "test_calibration.py"),
    ),
    Mutation(
        "correlated noise of the mean of K observations not divided by K",
        "conjugate.py",
        "g = noise_factor / root",
        "g = noise_factor",
        ("test_within.py",),
    ),
    Mutation(
        "sign of the correlated noise in the Gaussian likelihood",
        "likelihood.py",
        "logits = logits - half_distance(query @ c.mT",
        "logits = logits + half_distance(query @ c.mT",
        ("test_within.py",),
    ),
    Mutation(
        "empirical Bayes divides the covariance by the number of entries once more",
        "priors.py",
        "root = (weight.sqrt() * self.scale().sqrt())",
        "root = (weight * self.scale().sqrt())",
        ("test_priors.py",),
    ),
    Mutation(
        "variance where the standard deviation belongs in the paper's prior of z",
        "priors.py",
        "pooled.rsqrt()",
        "pooled.reciprocal()",
        ("test_priors.py",),
    ),
    Mutation(
        "variance where the standard deviation belongs in moment matching",
        "posteriors.py",
        "q.variance.clamp_min(1e-8).sqrt()",
        "q.variance.clamp_min(1e-8)",
        ("test_posteriors.py",),
    ),
    Mutation(
        "factor 2 missing in the squared distance",
        "likelihood.py",
        "return 2 * products(query, z)",
        "return products(query, z)",
        ("test_likelihood.py",),
    ),
    # memory
    Mutation(
        "own classes not left out of recall",
        "memory.py",
        "allowed = allowed & (own.unsqueeze(-1) != classes[:C]).all(1)",
        "allowed = allowed & (own.unsqueeze(-1) != classes[:C]).any(1)",
        MEMORY,
    ),
    Mutation(
        "softmax of the addressing over the classes of the task",
        "memory.py",
        "return F.log_softmax(g, -1)",
        "return F.log_softmax(g, 1)",
        MEMORY,
    ),
    Mutation(
        "memory rows shifted by one",
        "memory.py",
        "stored = torch.where(match, row, C).amin(-1)",
        "stored = torch.where(match, (row + 1) % C, C).amin(-1)",
        MEMORY,
    ),
    Mutation(
        "alpha swapped with 1 - alpha",
        "memory.py",
        "alpha * old + (1 - alpha) * candidate",
        "(1 - alpha) * old + alpha * candidate",
        MEMORY,
    ),
    Mutation(
        "a class in several tasks keeps the images of its first only",
        "memory.py",
        "member = same.repeat_interleave(R, 1)",
        "member = torch.eye(len(slots), device=slots.device).bool().repeat_interleave(R, 1)",
        MEMORY,
    ),
    Mutation(
        "recall reads the old entries, so that the update learns nothing",
        "memory.py",
        "if write is not None:\n            entries",
        "if False:\n            entries",
        MEMORY,
    ),
    Mutation(
        "newest entry makes room instead of the oldest",
        "memory.py",
        "torch.where(classes >= 0, written + 1, 0)",
        "torch.where(classes >= 0, written.max() - written + 1, 0)",
        MEMORY,
    ),
    Mutation(
        "top k keeps one too few",
        "memory.py",
        "g = g.masked_fill(g < least",
        "g = g.masked_fill(g <= least",
        MEMORY,
    ),
    Mutation(
        "attention over all images of the batch, not of the class",
        "memory_updates.py",
        'e = e.masked_fill(~member, float("-inf"))',
        "e = e.masked_fill(~member, 0.0)",
        MEMORY,
    ),
    # the generative likelihood
    Mutation(
        "marginal: uncertainty of the prototype left out",
        "likelihood.py",
        "inverse(noise + diag, joined(factor, noise_factor))",
        "inverse(noise + 0 * diag, joined(0 * factor, noise_factor))",
        GENERATIVE,
    ),
    Mutation(
        "marginal: determinant left out",
        "likelihood.py",
        "logits - own - log_det.unsqueeze(-2)",
        "logits - own - 0 * log_det.unsqueeze(-2)",
        GENERATIVE,
    ),
    Mutation(
        "marginal: low-rank part left out of the determinant",
        "likelihood.py",
        "log_det + 2 * tril.diagonal",
        "log_det + 0 * tril.diagonal",
        GENERATIVE,
    ),
    Mutation(
        "marginal: quadratic term of the query left out where classes differ",
        "likelihood.py",
        "logits - own - log_det",
        "logits - 0 * own - log_det",
        GENERATIVE,
    ),
    Mutation(
        "marginal: correlated noise left out",
        "likelihood.py",
        "for f in (factor, other)]",
        "for f in (factor, 0 * other)]",
        GENERATIVE,
    ),
    Mutation(
        "marginal: sign in Woodbury's identity",
        "likelihood.py",
        "diag.reciprocal(), -1, scaled.mT",
        "diag.reciprocal(), 1, scaled.mT",
        GENERATIVE,
    ),
    Mutation(
        "marginal: scale of the first class alone",
        "likelihood.py",
        "c.square().sum((-2, -1))).mean(-1)[..., None, None]",
        "c.square().sum((-2, -1)))[..., 0][..., None, None]",
        GENERATIVE,
    ),
    Mutation(
        "prediction samples z although it can be integrated out",
        "model.py",
        "logits = self.likelihood.marginal(q_z, task)\n        if",
        "logits = None\n        if",
        GENERATIVE,
    ),
    Mutation(
        "single tasks are predicted by samples where evaluation integrates",
        "prediction.py",
        "mean = p.mean(0) if exact is None else exact",
        "mean = p.mean(0)",
        GENERATIVE,
    ),
    Mutation(
        "what was remembered is given whatever the arguments",
        "remembered.py",
        "if last is None or not all(map(_equal, last[0], arguments)):",
        "if last is None:",
        ("test_remembered.py",),
    ),
    Mutation(
        "the last arguments are remembered without a copy",
        "remembered.py",
        "a.clone() if isinstance(a, Tensor) else a",
        "a if isinstance(a, Tensor) else a",
        ("test_remembered.py",),
    ),
    Mutation(
        "prior mean left out of the remembered posterior",
        "posteriors.py",
        "((s - loc) @ gain.mT).add_(loc)",
        "(s - loc) @ gain.mT",
        ("test_remembered.py",),
    ),
    # compared systems
    Mutation(
        "MAML of second order without second derivatives",
        "baselines/maml.py",
        "if self.config.first_order:",
        "if True:",
        BASELINES,
    ),
    Mutation(
        "MAML climbs",
        "baselines/maml.py",
        "w - self.inner_lr * slope[k]",
        "w + self.inner_lr * slope[k]",
        BASELINES,
    ),
    Mutation(
        "MAML: all classes share one row of the head",
        "baselines/maml.py",
        'F.linear(h, weights["head.weight"], weights["head.bias"])',
        'F.linear(h, weights["head.weight"].mean(0).expand_as(weights["head.weight"]), weights["head.bias"])',
        BASELINES,
    ),
    Mutation(
        "MAML: queries normalised by the moments of all",
        "baselines/maml.py",
        "torch.cat([x, queries]), first=len(x))",
        "torch.cat([x, queries]))",
        BASELINES,
    ),
    Mutation(
        "MAML: moments of all images, deviations of the support's",
        "baselines/maml.py",
        "part = values[: self.first] if self.first else values",
        "part = values",
        BASELINES,
    ),
    Mutation(
        "MAML tests with the steps of its training",
        "baselines/maml.py",
        "self.config.test_steps, together",
        "self.config.inner_steps, together",
        BASELINES,
    ),
    Mutation(
        "the first-order system is of second order",
        "systems.py",
        "first_order=True",
        "first_order=False",
        SYSTEMS,
    ),
    Mutation(
        "VERSA: features not squared in the variance",
        "baselines/versa.py",
        "h.square() @ weight_variance.mT",
        "h.abs() @ weight_variance.mT",
        BASELINES,
    ),
    Mutation(
        "VERSA: log variance read as log deviation",
        "baselines/versa.py",
        "weight_log_variance.float().clamp(-20, 10).exp()",
        "(2 * weight_log_variance.float()).clamp(-20, 10).exp()",
        BASELINES,
    ),
    Mutation(
        "VERSA: mean of logs for log of mean",
        "baselines/versa.py",
        ".logsumexp(0) - math.log(L)",
        ".mean(0)",
        BASELINES,
    ),
    Mutation(
        "VERSA: predicts with the mean classifier",
        "baselines/versa.py",
        "F.log_softmax(mean + variance.sqrt() * noise, -1)",
        "F.log_softmax(mean + 0 * variance.sqrt() * noise, -1)",
        BASELINES,
    ),
    Mutation(
        "RFS: bias penalised",
        "baselines/rfs.py",
        "residual.sum(1, keepdim=True)], 1)",
        "residual.sum(1, keepdim=True) + ahead[:, size:] / c], 1)",
        BASELINES,
    ),
    Mutation(
        "RFS: penalty multiplied by C",
        "baselines/rfs.py",
        "residual + ahead[:, :size] / c",
        "residual + ahead[:, :size] * c",
        BASELINES,
    ),
    Mutation(
        "RFS: examples not normalised",
        "baselines/rfs.py",
        "F.normalize(examples, dim=-1),",
        "examples,",
        BASELINES,
    ),
    Mutation(
        "GP: variance with the noise of a value",
        "baselines/gaussian_process.py",
        "variance = amplitude * query",
        "variance = noise + amplitude * query",
        BASELINES,
    ),
    Mutation(
        "GP: the softmax of the mean functions",
        "baselines/gaussian_process.py",
        "math.pi / 4 * tau.square() * variance",
        "0 * tau.square() * variance",
        BASELINES,
    ),
    Mutation(
        "distillation: divergence the wrong way round",
        "classifier.py",
        "F.log_softmax(logits[:asked] / c.temperature, -1),\n                taught,",
        "taught,\n                F.log_softmax(logits[:asked] / c.temperature, -1),",
        BASELINES,
    ),
    Mutation(
        "distillation: several teachers not divided by their number",
        "classifier.py",
        "logsumexp(0) - math.log(len(answers))",
        "logsumexp(0)",
        BASELINES,
    ),
    Mutation(
        "distillation: temperature not squared",
        "classifier.py",
        "c.temperature**2 * F.kl_div",
        "c.temperature * F.kl_div",
        BASELINES,
    ),
    Mutation(
        "rotation: told from the features where the logits were asked for",
        "classifier.py",
        'seen = logits if c.rotation_from == "logits" else h',
        'seen = logits.detach() if c.rotation_from == "logits" else h',
        BASELINES,
    ),
    Mutation(
        "schedule: rates fall a step late",
        "optimizers.py",
        "sum(done >= m for m in t.milestones)",
        "sum(done > m for m in t.milestones)",
        ("test_training.py",),
    ),
    Mutation(
        "ResNet-12: shortcut left out",
        "backbones/resnet12.py",
        "self.main(x) + self.shortcut(x)",
        "self.main(x)",
        ("test_deep_backbones.py",),
    ),
    Mutation(
        "DropBlock: what is kept is not scaled up",
        "backbones/resnet12.py",
        "x * keep * (keep.numel() / keep.sum().clamp_min(1))",
        "x * keep",
        ("test_deep_backbones.py",),
    ),
    Mutation(
        "VPN is fed the memory",
        "systems.py",
        '"memory_use": "off"',
        '"memory_use": "latent"',
        SYSTEMS,
    ),
    Mutation(
        "calibration steps of one size, however far the optimum",
        "calibration.py",
        " * max(1.0, float(p.detach().abs()))",
        "",
        SYSTEMS,
    ),
    # tables
    Mutation(
        "paired differences without the spread over seeds",
        "tables/lines.py",
        "difference = over_both(mine",
        "difference = over_episodes(mine",
        ("test_tables.py",),
    ),
    Mutation(
        "differences to the reference's other seeds",
        "tables/lines.py",
        "mine - stack(found, reference, p, metric)",
        "mine - stack(found, reference, p, metric).flip(0)",
        ("test_tables.py",),
    ),
    # folds
    Mutation(
        "folds: the class left out is trained on, too",
        "data/folds.py",
        "splits.train.subset(kept)",
        "splits.train",
        ("data/test_folds.py",),
    ),
    Mutation(
        "folds: test classes are in reach",
        "data/folds.py",
        "        splits.validation,",
        "        splits.test,",
        ("data/test_folds.py",),
    ),
    Mutation(
        "folds: every seed is evaluated on the first one",
        "tables/make.py",
        "            scoring = TableScores(table, runs.data(seed), protocol, where)",
        "            scoring = TableScores(table, runs.data(0), protocol, where)",
        ("test_tables.py",),
    ),
]
