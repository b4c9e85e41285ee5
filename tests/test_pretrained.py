"""Pretrained models: what is written is read back, nothing damaged or mixed is; those in the package load."""

import pytest
import torch

import pyro_vsm
from pyro_vsm import cards, pretrained
from pyro_vsm.cli import main
from pyro_vsm.config import Config
from pyro_vsm.errors import UserError
from pyro_vsm.loading import load_model

PACKAGED = pretrained.names()


def some_tensors():
    return {"a.weight": torch.randn(40, 30), "a.bias": torch.randn(40), "huge": torch.full((2, 2), 1e5),
            "count": torch.arange(6).view(2, 3)}  # fmt: skip


def test_matrices_are_halved_and_all_else_is_kept(tmp_path):
    tensors = some_tensors()
    pretrained.write("m", tensors, {"system": "vsm"}, tmp_path)
    read, meta = pretrained.read("m", tmp_path)
    assert pretrained.names(tmp_path) == ["m"]
    assert meta["system"] == "vsm"
    assert read["a.weight"].dtype == torch.float16
    torch.testing.assert_close(read["a.weight"].float(), tensors["a.weight"], rtol=1e-3, atol=1e-6)
    for name in ("a.bias", "huge", "count"):  # vectors, what would overflow, whole numbers
        assert torch.equal(read[name], tensors[name])
    pretrained.write("m", tensors, {}, tmp_path, half=False)
    assert torch.equal(pretrained.read("m", tmp_path)[0]["a.weight"], tensors["a.weight"])


def test_files_stay_under_the_limit_and_belong_together(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_HEADER", 1000)
    monkeypatch.setattr(pretrained, "MOST_BYTES", 4000)
    tensors = {f"t{i}": torch.randn(25, 20) for i in range(7)}
    files = pretrained.write("m", tensors, {}, tmp_path)
    assert [p.name for p in files] == [f"model-{i}-of-4.safetensors" for i in (1, 2, 3, 4)]
    assert max(p.stat().st_size for p in files) <= 4000
    read, _ = pretrained.read("m", tmp_path)
    assert set(read) == set(tensors)
    pretrained.write("other", {k: v + 1 for k, v in tensors.items()}, {}, tmp_path)
    swapped = (tmp_path / "other" / files[1].name).read_bytes()
    whole = files[1].read_bytes()
    files[1].write_bytes(swapped)
    with pytest.raises(UserError, match="not of one model"):
        pretrained.read("m", tmp_path)
    files[1].unlink()
    with pytest.raises(UserError, match="not all there"):
        pretrained.read("m", tmp_path)
    files[1].write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(UserError, match="is damaged"):
        pretrained.read("m", tmp_path)
    pretrained.write("m", {"t": torch.randn(3)}, {}, tmp_path)  # what was there before is gone
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["model.safetensors"]
    with pytest.raises(UserError, match="more than a file may have"):
        pretrained.write("m", {"t": torch.randn(3, 5000)}, {}, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_names_that_are_none_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="no name for a model"):
        pretrained.write(name, some_tensors(), {}, tmp_path)


def test_export_writes_a_model_and_a_card_of_what_it_does(tiny_run, tmp_path, capsys):
    arguments = ["export", str(tiny_run / "vsm"), "tiny", "--folder", str(tmp_path), "--shots", "1", "2"]
    assert main([*arguments, "--note", "Only a test.", "--device", "cpu"]) == 0
    model, _ = load_model(tmp_path / "tiny")
    original = pyro_vsm.load(tiny_run / "vsm", device="cpu")
    images = torch.randint(256, (6, 3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(model.encode(images), original.encode(images), atol=2e-2, rtol=0)
    assert next(model.parameters()).dtype == torch.float32
    card = pretrained.card("tiny", tmp_path)
    assert "System `vsm` for colour images of 28×28" in card
    assert "Only a test." in card
    assert card.count("\n|     3 |") + card.count("\n| 3 |") + card.count("|     3 |") >= 2  # a row for each shot
    assert str(tmp_path) not in card
    assert "tiny images" not in card  # where the data lay is nobody's business
    assert b"tiny images" not in (tmp_path / "tiny" / "model.safetensors").read_bytes()


def test_the_recipe_of_a_card_is_the_configuration(tiny_config):
    config = tiny_config()
    values = cards.changed(config.to_dict(), Config().to_dict())
    assert values["data"] == {"name": "folder", "image_size": 28}
    assert values["training"]["steps"] == 8
    back = Config.from_dict({**Config().to_dict(), **{k: {**Config().to_dict()[k], **v} if isinstance(v, dict) else v
                                                      for k, v in values.items()}})  # fmt: skip
    assert back.training == config.training.__class__(**{**vars(config.training), "device": "auto"})
    assert back.model == config.model


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="there is no pretrained model 'glifs'"):
        pyro_vsm.load_pretrained("glifs")
    with pytest.raises(UserError, match="there is no pretrained model"):
        pretrained.card("../..")


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_models_load_and_have_a_card(name):
    folder = pretrained.WEIGHTS / name
    assert all(p.stat().st_size <= 16 << 20 for p in folder.iterdir())
    model = pyro_vsm.load_pretrained(name, device="cpu")
    assert not model.training
    card = pretrained.card(name)
    for word in ("## Data", "## Recipe", "pyro-vsm train", "accuracy %", "ECE %", "±"):
        assert word in card
    assert "/tmp" not in card
