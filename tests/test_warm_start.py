"""Starting a system from an encoder that was trained before."""

import pytest
import torch

from pyro_vsm import checkpoint
from pyro_vsm import warm_start as module
from pyro_vsm.backbones import Conv4
from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.feature_map import FeatureMap
from pyro_vsm.vsm import VSM
from pyro_vsm.warm_start import warm_start

CPU = torch.device("cpu")


def encoder(mean: float = 0.5, width: int = 4, **settings) -> Encoder:
    feature_map = FeatureMap(4 * width // 4, **settings)
    return Encoder(Conv4(3, 28, width=width), [mean] * 3, [0.25] * 3, feature_map=feature_map)


@pytest.fixture
def trained(tmp_path):
    """A model file, and the model in it."""
    torch.manual_seed(1)
    model = PrototypicalNetwork(encoder(0.3)).eval()
    checkpoint.write(tmp_path / "model.safetensors", model.state_dict(), {})
    return tmp_path / "model.safetensors", model


def test_images_are_seen_as_in_the_training_of_the_backbone(trained, tiny_data):
    """Other data have other channel statistics; the backbone goes with those that it was trained with."""
    path, model = trained
    other = PrototypicalNetwork(encoder(0.6))
    warm_start(other, path, tiny_data.train, CPU)
    other.eval()
    images = tiny_data.train.images[:5]
    torch.testing.assert_close(other.encode(images), model.encode(images))


def test_memory_and_feature_map_see_all_training_images(trained, tiny_data):
    path, model = trained
    vsm = VSM(encoder(centre=True), capacity=12)
    warm_start(vsm, path, tiny_data.train, CPU)
    vsm.eval()
    with torch.no_grad():
        features = vsm.encode(tiny_data.train.images)
        scaled = model.encode(tiny_data.train.images)
    torch.testing.assert_close(vsm.encoder.feature_map.mean, scaled.mean(0))
    torch.testing.assert_close(vsm.memory.entries[:12], features.unflatten(0, (12, 6)).mean(1))
    assert vsm.memory.counts[:12].tolist() == [6] * 12


@pytest.mark.parametrize(("settings", "reads"), [({}, 0), ({"centre": True}, 1)])
def test_images_are_encoded_only_for_what_learns_of_them(trained, tiny_data, monkeypatch, settings, reads):
    calls = []
    real = module.raw_features
    monkeypatch.setattr(module, "raw_features", lambda *given: calls.append(given) or real(*given))
    warm_start(PrototypicalNetwork(encoder(**settings)), trained[0], tiny_data.train, CPU)
    assert len(calls) == reads
    warm_start(VSM(encoder(), capacity=12), trained[0], tiny_data.train, CPU)
    assert len(calls) == reads + 1


def test_another_backbone_is_refused(trained, tiny_data):
    with pytest.raises(UserError, match=r"training.init: .*does not fit"):
        warm_start(PrototypicalNetwork(encoder(width=8)), trained[0], tiny_data.train, CPU)


def test_a_file_without_a_backbone_is_refused(tmp_path, tiny_data):
    checkpoint.write(tmp_path / "model.safetensors", {"x": torch.ones(1)}, {})
    with pytest.raises(UserError, match="holds no backbone"):
        warm_start(PrototypicalNetwork(encoder()), tmp_path / "model.safetensors", tiny_data.train, CPU)
