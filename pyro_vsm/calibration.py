"""Fitting a system's few scalars (temperature, noise scale, shrinkage) to validation classes after training."""

from __future__ import annotations

import torch
from tqdm import trange

from pyro_vsm.config import Config
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.feature_cache import split_features
from pyro_vsm.fewshot import FewShotModel

SEED = 2
"""Of the calibration episodes: others than those of validation."""


def calibrate(
    model: FewShotModel, data: ClassImages, config: Config, *, steps: int = 100, tasks: int = 16, lr: float = 0.2
) -> None:
    """Minimise the negative log-likelihood of validation episodes in ``model.calibration_parameters()``.

    The rest of the model stays as it is. Why: new classes lie closer to each other than the training classes do, so
    scales that are learned on these make the model overconfident.

    Args:
        model: in evaluation mode, on its device.
        data: validation images.
        config: its ``episodes`` (way, shot) and ``evaluation.queries``.
        steps, tasks: of Adam; each step takes other episodes.
        lr: its rate, times the parameter's present size where that is above 1: an inverse temperature of 50 must be
            able to reach 2 within the steps, and not to jump over it.
    """
    parameters = model.calibration_parameters()
    if not parameters:
        return
    device = parameters[0].device
    e = config.episodes
    features = split_features(model, data, device=device)
    episodes = fixed_episodes(
        data, way=e.way, shot=e.shot, queries=config.evaluation.queries, episodes=steps * tasks, seed=SEED
    ).to(device)
    labels = torch.arange(episodes.way, device=device).repeat_interleave(episodes.queries).expand(tasks, -1)
    frozen = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in parameters)]
    for p in frozen:
        p.requires_grad_(False)
    fitted = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.Adam([{"params": [p]} for p in fitted], betas=(0.8, 0.9))  # soon forgets a steep start
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(SEED)
        for step in trange(steps, desc="calibration", unit="step", dynamic_ncols=True, leave=False):
            for group, p in zip(optimizer.param_groups, fitted):
                group["lr"] = lr * (1 - step / steps) * max(1.0, float(p.detach().abs()))
            rows = episodes[step * tasks : (step + 1) * tasks]
            q = model.predict(features[rows.support], features[rows.query].flatten(1, 2), 20)
            loss = -q.gather(-1, labels.unsqueeze(-1)).clamp_min(1e-12).log().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    for p in frozen:
        p.requires_grad_(True)
