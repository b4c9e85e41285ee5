"""Predictions for ordinary photographs, and what the model says it does not know."""

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vsm
from pyro_vsm import prediction
from pyro_vsm.errors import UserError
from pyro_vsm.systems import ImageSpec, build_model


@pytest.fixture
def photographs(tmp_path):
    """One picture of each kind that cameras, scanners and web pages leave behind."""
    folder = tmp_path / "photographs"
    (folder / "deeper").mkdir(parents=True)
    noise = np.random.default_rng(0)

    def colour(height, width):
        y, x = np.mgrid[:height, :width]
        bands = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
        return Image.fromarray((bands + noise.normal(0, 5, bands.shape)).clip(0, 255).astype(np.uint8))

    colour(60, 80).save(folder / "plain.png")
    colour(300, 400).save(folder / "large.JPG", quality=80)
    colour(50, 70).convert("L").save(folder / "grey.jpg")
    colour(50, 70).convert("1").save(folder / "black and white.png")
    palette = colour(40, 40).convert("P")
    palette.save(folder / "palette.png", transparency=3)
    alpha = colour(64, 48).convert("RGBA")
    alpha.putalpha(colour(64, 48).convert("L"))
    alpha.save(folder / "alpha.png")
    alpha.save(folder / "alpha.webp")
    colour(64, 48).convert("LA").save(folder / "grey alpha.png")
    colour(64, 64).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray((np.arange(40 * 50).reshape(40, 50) * 30).astype(np.uint16)).save(folder / "scan.png")
    Image.fromarray((np.arange(40 * 50).reshape(40, 50) * 30).astype(np.uint16)).save(folder / "scan.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    colour(48, 96).save(folder / "turned.jpeg", exif=exif)
    frames = [colour(40, 40).convert("P") for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    colour(200, 9).save(folder / "tall.png")
    colour(9, 200).save(folder / "wide.bmp")
    colour(1, 1).save(folder / "deeper" / "pixel.png")
    (folder / "Thumbs.db").write_bytes(b"no picture, and none by name")
    return folder


@pytest.fixture
def support(tmp_path, tiny_root):
    """Three examples of one class, one of another."""
    for name, number in (("test 0", 3), ("test 1", 1)):
        (tmp_path / "support" / name).mkdir(parents=True)
        for i in range(number):
            shutil.copy(tiny_root / "test" / name / f"{i}.png", tmp_path / "support" / name)
    return tmp_path / "support"


@pytest.mark.parametrize("system", ["vsm", "pn"])
def test_photographs_of_every_kind_are_classified(tiny_run, photographs, support, system, capsys):
    done = prediction.predict_files(
        str(tiny_run / system), str(support), [str(photographs)], device="cpu", samples=20
    )
    assert len(done.files) == 16
    assert done.files == sorted(done.files)
    assert done.classes == ["test 0", "test 1"]
    assert done.probabilities.shape == (16, 2)
    torch.testing.assert_close(done.probabilities.sum(-1), torch.ones(16))
    assert ((done.uncertainty >= 0) & (done.uncertainty <= 1 + 1e-6)).all()
    assert "turned.jpeg" in capsys.readouterr().out


def test_photographs_as_examples_too(tiny_run, photographs, tmp_path, capsys):
    for i, path in enumerate(sorted(photographs.glob("*.*"))):
        (tmp_path / "mixed" / f"class {i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "mixed" / f"class {i % 3}")
    query = [str(photographs / "plain.png"), str(photographs / "deeper")]
    done = prediction.predict_files(str(tiny_run), str(tmp_path / "mixed"), query, device="cpu", samples=5)
    assert done.probabilities.shape == (2, 3)


def test_bad_files_stop_or_are_skipped(tiny_run, photographs, support, capsys):
    (photographs / "broken.png").write_bytes((photographs / "plain.png").read_bytes()[:200])
    (support / "test 0" / "broken.png").write_bytes(b"")
    arguments = (str(tiny_run), str(support), [str(photographs)])
    with pytest.raises(UserError, match=r"test 0.broken\.png is empty"):
        prediction.predict_files(*arguments, device="cpu", samples=5)
    done = prediction.predict_files(*arguments, device="cpu", samples=5, bad_files="skip", form="json")
    assert len(done.files) == 16
    captured = capsys.readouterr()
    assert "Skipped: " in captured.err
    assert "broken.png" in captured.err
    assert len(json.loads(captured.out)["rows"]) == 16
    (support / "test 0" / "broken.png").unlink()
    with pytest.raises(UserError, match=r"broken\.png is no readable image"):
        prediction.predict_files(*arguments, device="cpu", samples=5)


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vsm(tiny_run):
    return pyro_vsm.load(tiny_run / "vsm", device="cpu")


@pytest.fixture(scope="module")
def classes(tiny_data):
    """The images of each test class, ``[6, C, H, W]``."""
    return list(tiny_data.test.images.split(tiny_data.test.counts.tolist()))


def test_same_seed_same_numbers_and_no_trace_in_the_generators(vsm, classes):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    support, query = [classes[0][:2], classes[1][:2]], classes[2]
    a, b, c = (prediction.predict(vsm, support, query, samples=6, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_classes_with_more_examples_use_them_all(tiny_run, classes):
    pn = pyro_vsm.load(tiny_run / "pn", device="cpu")
    shots, query = [5, 3, 4], classes[3]
    support = [c[:k] for c, k in zip(classes, shots)]
    means = torch.stack([pn.encode(s).mean(0) for s in support]).view(1, 3, 1, -1)
    wanted = pn.predict(means, pn.encode(query).unsqueeze(0))[0]
    torch.testing.assert_close(prediction.predict(pn, support, query), wanted)
    fewer = prediction.predict(pn, [s[:3] for s in support], query)
    assert (fewer - wanted).abs().max() > 1e-4  # the others made a difference


@pytest.mark.parametrize(("many", "few"), [(3, 1), (3, 2), (5, 4), (6, 3), (7, 7), (9, 5)])
def test_folding_keeps_the_mean_and_weighs_all_alike(many, few):
    features = torch.randn(many, 4)
    folded = prediction.fold(features, few)
    assert folded.shape == (few, 4)
    torch.testing.assert_close(folded.mean(0), features.mean(0))
    share = prediction.fold(torch.eye(many), few)
    torch.testing.assert_close(share.sum(1), torch.ones(few))
    torch.testing.assert_close(share.sum(0), torch.full((many,), few / many))
    if many == few:
        torch.testing.assert_close(folded, features)


def test_queries_are_answered_alike_in_any_number(tiny_run, classes):
    pn = pyro_vsm.load(tiny_run / "pn", device="cpu")
    support, query = [classes[0][:1], classes[1][:1]], torch.cat(classes * 9)
    together = prediction.predict(pn, support, query)
    assert len(together) == 324  # more than one block
    torch.testing.assert_close(together[300:], prediction.predict(pn, support, query[300:]))


# --- from Python ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def belief(vsm, classes):
    torch.manual_seed(0)
    support = torch.stack([c[:2] for c in classes[:3]])
    return vsm.infer(support, torch.cat([c[4:] for c in classes[:3]]), samples=64)


def test_five_lines_in_a_notebook(tiny_run, classes):
    model = pyro_vsm.load(str(tiny_run))
    belief = model.infer(torch.stack([c[:1] for c in classes]), classes[0][3:])
    assert belief.probabilities.shape == (3, 6)
    assert len(belief.z) == len(belief.m) == 1000


def test_shapes_of_what_is_inferred(belief, vsm):
    assert belief.probabilities.shape == (6, 3)
    assert belief.sample_probabilities.shape == (64, 6, 3)
    assert belief.z.shape == belief.m.shape == (64, 3, vsm.dim)
    assert belief.addressing.shape == (3, vsm.memory.capacity)
    assert belief.support.shape == (3, 2, vsm.dim)
    assert belief.query.shape == (6, vsm.dim)


def test_probabilities_are_the_mean_over_samples_and_weights_sum_to_one(belief):
    torch.testing.assert_close(belief.probabilities, belief.sample_probabilities.mean(0))
    torch.testing.assert_close(belief.probabilities.sum(-1), torch.ones(6))
    torch.testing.assert_close(belief.addressing.sum(-1), torch.ones(3))


def test_entropy_is_expected_entropy_plus_mutual_information(belief):
    p, samples = belief.probabilities.double(), belief.sample_probabilities.double()
    entropy = -(p * p.log()).sum(-1)
    expected = -(samples * samples.log()).sum(-1).mean(0)
    divergence = (samples * (samples / p).log()).sum(-1).mean(0)  # mean KL of a sample to the mean
    torch.testing.assert_close(belief.entropy.double(), entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.expected_entropy.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.mutual_information.double(), divergence, atol=1e-5, rtol=0)
    assert (belief.mutual_information > 0).all()
    assert (belief.entropy <= math.log(3) + 1e-5).all()


def test_a_posterior_without_spread_leaves_no_mutual_information(tiny_config, tiny_data, classes):
    parts = {"posterior_z": "deterministic", "memory_use": "rote"}
    model = build_model("vsm", tiny_config(model=parts), ImageSpec.of(tiny_data))
    belief = model.infer(torch.stack([c[:1] for c in classes[:3]]), classes[3], samples=16)
    assert belief.mutual_information.max() < 1e-6
    assert belief.expected_entropy.min() > 0
    assert torch.equal(belief.z[0], belief.z[1])


def test_inference_leaves_the_model_as_it_was(vsm, classes):
    model = vsm.train()
    try:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.infer(torch.stack([c[:1] for c in classes[:3]]), classes[3], samples=4)
        assert model.training
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    finally:
        model.eval()


def test_features_serve_as_well_as_images(vsm, classes):
    support, query = torch.stack([c[:1] for c in classes[:3]]), classes[3]
    features = vsm.encode(support.flatten(0, 1)).detach().view(3, 1, -1), vsm.encode(query).detach()
    answers = []
    for a, b in ((support, query), features):
        torch.manual_seed(0)
        answers.append(vsm.infer(a, b, samples=8).probabilities)
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        ((3, 1, 3, 28, 28), (2, 3, 30, 30), r"this model takes \[batch, 3, 28, 28\]"),
        ((3, 1, 1, 28, 28), (2, 3, 28, 28), r"this model takes \[batch, 3, 28, 28\]"),
        ((3, 3, 28, 28), (2, 3, 28, 28), "support has shape"),
        ((3, 1, 3, 28, 28), (3, 28, 28), "query"),
        ((0, 1, 3, 28, 28), (2, 3, 28, 28), "without images"),
        ((3, 1, 9), (2, 9), "features have 9 dimensions, the model was trained with 8"),
    ],
)
def test_wrong_shapes_are_refused(vsm, support, query, message):
    with pytest.raises(UserError, match=message):
        vsm.infer(torch.rand(support), torch.rand(query), samples=2)


def test_nan_is_refused(vsm):
    with pytest.raises(UserError, match="NaN"):
        vsm.infer(torch.full((2, 1, 3, 28, 28), math.nan), torch.rand(2, 3, 28, 28), samples=2)
