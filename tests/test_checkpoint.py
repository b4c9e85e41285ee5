"""Checkpoints: whole or refused, and nothing in them is executed."""

import json
import math
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pyro_vsm
from pyro_vsm import checkpoint, jobs
from pyro_vsm.errors import UserError
from pyro_vsm.loading import read_config
from pyro_vsm.run import read_metrics


@pytest.fixture(scope="module")
def model_file(tiny_run):
    return tiny_run / "vsm" / "model.safetensors"


@pytest.fixture
def rewrite(model_file, tmp_path):
    """``rewrite(change)``: the model's file after ``change(tensors, meta)``, with a checksum that holds."""

    def make(change):
        tensors, meta = checkpoint.read(model_file)
        change(tensors, meta)
        path = tmp_path / "changed.safetensors"
        text = json.dumps(meta)
        save_file(tensors, path, {"pyro_vsm": text, "sha256": checkpoint._digest(text, tensors)})
        return path

    return make


# --- reading and writing ------------------------------------------------------------------------------------


def test_round_trip_keeps_values_types_shapes_and_meta(tmp_path):
    tensors = {
        "float": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "half": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
        "transposed": torch.arange(6).view(2, 3).T,
    }
    path = tmp_path / "folder" / "x.safetensors"
    checkpoint.write(path, tensors, {"système": "vsm", "list": [1, None, "ü"]})
    read, meta = checkpoint.read(path)
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(read[name], value, rtol=0, atol=0, check_stride=False)
    assert meta["système"] == "vsm"
    assert meta["list"] == [1, None, "ü"]
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["format"] == checkpoint.FORMAT


def test_writing_over_a_checkpoint_that_fails_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.ones(2)}, {})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="No space left"):
            checkpoint.write(path, {"a": torch.zeros(2)}, {})
    assert checkpoint.read(path)[0]["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_every_single_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.arange(5.0)}, {"system": "pn"})
    content = path.read_bytes()
    for where in range(len(content)):
        bad = bytearray(content)
        bad[where] ^= 1 << (where % 8)
        path.write_bytes(bytes(bad))
        try:
            tensors, meta = checkpoint.read(path)
        except UserError:
            continue
        # what was flipped can only be the name of the checksum or blanks between: the content is the same
        assert tensors["a"].tolist() == [0, 1, 2, 3, 4]
        assert meta["system"] == "pn"


def test_files_without_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"pyro_vsm": json.dumps({"format": 1})})
    assert checkpoint.read(tmp_path / "x.safetensors")[0]["a"].item() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no checkpoint"),
        (b"\x80\x04\x95 pickle", "is damaged or no checkpoint"),
        (b"<!doctype html><html><body>404 Not Found</body></html>", "is damaged or no checkpoint"),
        (b"\xff" * 64, "is damaged or no checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        checkpoint.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_files_are_refused(model_file, tmp_path, share):
    content = model_file.read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        pyro_vsm.load(tmp_path / "x.safetensors")


def test_safetensors_of_another_program(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="of another program"):
        pyro_vsm.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("version", [2, 0, "1", None, 1e9])
def test_formats_of_the_future_are_refused(rewrite, version):
    path = rewrite(lambda tensors, meta: meta.update(format=version))
    with pytest.raises(UserError, match="upgrade pyro-vsm"):
        pyro_vsm.load(path)


def test_deeply_nested_headers_are_refused(tmp_path):
    text = "[" * 100_000
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"pyro_vsm": text})
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        checkpoint.read(tmp_path / "x.safetensors")


# --- a checkpoint of an older version, kept as it was written ---------------------------------------------------

OLD = Path(__file__).parent / "checkpoints" / "format1"


def test_a_model_of_an_older_version_is_read_and_predicts():
    model = pyro_vsm.load(OLD, device="cpu")
    assert (model.memory.classes >= 0).sum() == 12
    waves = torch.tensor([0.3, 0.7, 1.1, 1.9, 0.4, 2.3]).view(6, 1, 1, 1)
    images = (torch.arange(6 * 3 * 16 * 16).view(6, 3, 16, 16) * waves).sin() / 2 + 0.5
    features = model.encode(images).view(1, 3, 2, -1)
    answer = model.predict(features[:, :, :1], features[0, :, 1].unsqueeze(0), 2000)
    # what that version answered with 50 000 posterior samples
    wanted = torch.tensor([[0.3732, 0.4053, 0.2215], [0.2967, 0.3397, 0.3636], [0.4187, 0.3669, 0.2144]])
    torch.testing.assert_close(answer[0], wanted, atol=0.01, rtol=0)


def test_a_state_of_an_older_version_is_resumed(tmp_path, tiny_root):
    """It lacks what came later: settings, the count of skipped steps, a state before it."""
    shutil.copytree(OLD, tmp_path / "run")
    config = read_config(tmp_path / "run")
    config.data.root = str(tiny_root)
    # the PNG files are decoded and scaled by another Pillow perhaps, which makes the images others
    assert jobs.train(config, tmp_path / "run", resume=True, force=True, log=lambda _: None) == tmp_path / "run"
    records = read_metrics(tmp_path / "run" / "vsm" / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [3, 6, 8]
    assert all(math.isfinite(v) for r in records for v in r.values())
    assert checkpoint.read(tmp_path / "run" / "vsm" / "state.safetensors")[1]["step"] == 8


# --- models -------------------------------------------------------------------------------------------------


def test_a_loaded_model_predicts_as_the_trained_one_did(tiny_run, tiny_data):
    for system in ("vsm", "vpn", "pn"):
        a, b = (pyro_vsm.load(tiny_run / system, device="cpu") for _ in range(2))
        assert not a.training
        support, query = a.encode(tiny_data.test.images[:3]), a.encode(tiny_data.test.images[3:5])
        answers = []
        for model in (a, b):
            torch.manual_seed(0)
            answers.append(model.predict(support.view(1, 3, 1, -1), query.unsqueeze(0), 7))
        assert torch.equal(*answers)


def test_run_folder_system_folder_and_file_mean_the_same_model(tiny_run):
    states = [
        pyro_vsm.load(path, device="cpu").state_dict()
        for path in (tiny_run, tiny_run / "vsm", tiny_run / "vsm" / "model.safetensors")
    ]
    assert all(torch.equal(states[0][k], s[k]) for s in states for k in states[0])


def test_the_memory_travels_with_the_model(tiny_run):
    memory = pyro_vsm.load(tiny_run, device="cpu").memory
    assert memory.filled.sum() > 3
    assert memory.entries[: memory.capacity][memory.filled].abs().sum() > 0


def spoil(name, value):
    def change(tensors, meta):
        tensors[name] = value(tensors[name])

    return change


WEIGHT = "encoder.backbone.blocks.0.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(WEIGHT, lambda t: t * float("nan")), f"{WEIGHT} holds NaN or infinity"),
        (spoil("memory.entries", lambda t: t + float("inf")), "memory.entries holds NaN or infinity"),
        (spoil(WEIGHT, lambda t: t[:3].contiguous()), rf"{WEIGHT} is \[3, 3, 3, 3\], not \[8, 3, 3, 3\]"),
        (lambda tensors, meta: tensors.pop(WEIGHT), f"1 tensors differ, the first is {WEIGHT}"),
        (lambda tensors, meta: tensors.update(extra=torch.ones(1)), "1 tensors differ, the first is extra"),
        (lambda tensors, meta: meta.pop("config"), "lacks 'config'"),
        (lambda tensors, meta: meta.pop("images"), "lacks 'images'"),
        (lambda tensors, meta: meta["images"].update(more=1), "is no model of pyro-vsm"),
        (lambda tensors, meta: meta["images"].update(mean="0"), "channels; give one each"),
        (lambda tensors, meta: meta["images"].update(size="large"), "cannot be built"),
        (lambda tensors, meta: meta.update(images=3), "is no model of pyro-vsm"),
        (lambda tensors, meta: meta.update(system="gpt"), "there is no system 'gpt'; known are classifier, gp, maml"),
        (lambda tensors, meta: meta.update(system=["vsm"]), "there is no system"),
        (lambda tensors, meta: meta["config"].update(modle={}), "no setting 'modle'"),
        (lambda tensors, meta: meta["config"].update(model=[1]), "must be a mapping"),
        (lambda tensors, meta: meta.update(config=None), "must be a mapping"),
        (lambda tensors, meta: meta["config"]["model"].update(prior_z="nothing"), "no part called 'nothing'"),
        (lambda tensors, meta: meta["config"]["model"].update(prior_z=7), "describes no part"),
        (lambda tensors, meta: meta["config"]["model"].update(address_dim="wide"), "cannot be built"),
        (lambda tensors, meta: meta["config"]["training"].update(steps="many"), "steps|not supported"),
        (
            lambda tensors, meta: meta["config"]["model"]["backbone"]["init_args"].update(width="8"),
            "conv4: width is '8'",
        ),
    ],
)
def test_changed_models_are_refused(rewrite, change, message):
    with pytest.raises(UserError, match=message):
        pyro_vsm.load(rewrite(change), device="cpu")


def test_a_refused_checkpoint_leaves_the_model_alone(tiny_run):
    model = pyro_vsm.load(tiny_run, device="cpu")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = {k: torch.full_like(v, 2) for k, v in before.items()}
    tensors["memory.entries"] = torch.full_like(before["memory.entries"], float("nan"))
    with pytest.raises(UserError, match="NaN"):
        checkpoint.load_into(model, tensors, "x")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_state_is_no_model(tiny_run):
    with pytest.raises(UserError, match=r"give the model\.safetensors beside it"):
        pyro_vsm.load(tiny_run / "vsm" / "state.safetensors")


@pytest.mark.parametrize("text", ["systems: [", "systems: []", "systems: [gpt]", "- 1", "", "systems: 3", "\xff"])
def test_run_folders_with_a_broken_configuration(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml"):
        pyro_vsm.load(tmp_path)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        pyro_vsm.load(tmp_path)
    (tmp_path / "config.yaml").write_text("systems: [pn]")
    with pytest.raises(UserError, match=r"there is no checkpoint .*pn.model\.safetensors"):
        pyro_vsm.load(tmp_path)


# --- nothing is executed ------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, text)``: a module that can be imported, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    made = []

    def make(name: str, text: str) -> None:
        (tmp_path / "modules" / f"{name}.py").write_text(textwrap.dedent(text))
        made.append(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "part",
    ["backbone", "prior_m", "prior_z", "posterior_m", "posterior_z", "likelihood", "memory_use", "memory_update"],
)
def test_a_checkpoint_imports_nothing(rewrite, module, tmp_path, part):
    trace = tmp_path / "executed"
    module("hostile_part", f"open({str(trace)!r}, 'w').close()\nclass Part: pass")

    def change(tensors, meta):
        meta["config"]["model"][part] = {"class_path": "hostile_part.Part"}

    with pytest.raises(UserError, match="from a module that is not imported"):
        pyro_vsm.load(rewrite(change), device="cpu")
    assert not trace.exists()
    assert "hostile_part" not in sys.modules
    import hostile_part  # noqa: F401  the trap works

    assert trace.exists()


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "torch.nn.Linear"])
def test_a_checkpoint_calls_nothing_but_parts(rewrite, path):
    def change(tensors, meta):
        meta["config"]["model"]["prior_z"] = {"class_path": path, "init_args": {}}

    with pytest.raises(UserError, match=r"is no PriorZ|not imported"):
        pyro_vsm.load(rewrite(change), device="cpu")


def test_a_prior_of_ones_own_trains_from_a_configuration_and_loads_once_imported(tmp_path, tiny_config, module):
    module(
        "my_priors",
        """
        import pyro.distributions as dist
        import torch
        from pyro_vsm import PriorZ

        class Wide(PriorZ):
            def __init__(self, dim, *, scale):
                super().__init__(dim)
                self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())

            def forward(self, m, task):
                return dist.Normal(m, self.log_scale.exp()).to_event(1)
        """,
    )
    part = {"class_path": "my_priors.Wide", "init_args": {"scale": 2.0}}
    run = jobs.train(tiny_config(model={"prior_z": part}), tmp_path / "run", log=lambda _: None)
    scale = load_file(run / "vsm" / "model.safetensors")["program.prior_z.log_scale"]
    assert scale.item() != pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)  # it was trained
    assert torch.equal(pyro_vsm.load(run, device="cpu").program.prior_z.log_scale, scale)
    del sys.modules["my_priors"]
    with pytest.raises(UserError, match=r"'my_priors\.Wide' from a module that is not imported.* import my_priors"):
        pyro_vsm.load(run, device="cpu")


def test_the_header_is_json_that_anybody_can_read(model_file):
    with safe_open(model_file, framework="pt") as file:
        meta = json.loads(file.metadata()["pyro_vsm"])
    assert meta["system"] == "vsm"
    assert meta["images"]["size"] == 28
    assert set(meta["data"]) == {"train", "validation", "test"}
    assert len(meta["data"]["train"]["sha256"]) == 64
