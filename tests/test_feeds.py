"""What a training step is fed: pixels, or what the model does to them first."""

import pytest
import torch

from pyro_vsm.feeds import EpisodeFeed
from pyro_vsm.systems import ImageSpec, build_model


@pytest.fixture
def encoder(tiny_config, tiny_data):
    return build_model("pn", tiny_config(), ImageSpec.of(tiny_data)).encoder.eval()


def test_images_are_finished_as_the_model_would_do_it(tiny_config, tiny_data, encoder):
    config = tiny_config()
    config.augment.flip, config.augment.brightness = True, 0.3
    plain, finished = (EpisodeFeed(tiny_data.train, config, finish) for finish in (None, encoder.normalised))
    index = plain.sampler.sample(2)
    torch.manual_seed(0)
    pixels = plain.images(index)
    torch.manual_seed(0)
    images = finished.images(index)
    assert pixels.dtype == torch.float32
    assert images.dtype == torch.bfloat16
    assert images.shape == pixels.shape
    torch.testing.assert_close(images.flatten(0, 2), encoder.normalised(pixels.flatten(0, 2)))
    h = encoder(pixels.flatten(0, 2))
    torch.testing.assert_close(encoder(images.flatten(0, 2)), h, atol=0.05, rtol=0.05)  # of unit RMS; bfloat16 rounds
    assert (encoder(pixels.flatten(0, 2).to(torch.bfloat16)) - h).abs().max() > 0.2  # no pixels, although they fit


@pytest.mark.cuda
@pytest.mark.parametrize(("system", "wanted"), [("vsm", torch.bfloat16), ("maml", torch.float32)])
def test_in_mixed_precision_the_feed_finishes_images_for_those_who_do_not_do_it_themselves(
    tiny_config, tiny_data, system, wanted
):
    config = tiny_config()
    model = build_model(system, config, ImageSpec.of(tiny_data), amp=True).cuda()
    feed = model.feed(tiny_data.train.to("cuda"), config)
    assert feed.images(feed.sampler.sample(2)).dtype == wanted
