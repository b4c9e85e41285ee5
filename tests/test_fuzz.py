"""Random configurations, episodes, memory operations and image files (hypothesis), and every reader on broken bytes.

The readers are also run under a coverage-guided fuzzer, ``python -m tests.fuzz``.
"""

import copy
import io
import math

import pytest
import torch
from fuzz.readers import READERS, harmless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from pyro_vsm.config import Config
from pyro_vsm.data.decode import read_image
from pyro_vsm.data.episodes import EpisodeSampler, fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.settings import read_settings
from pyro_vsm.systems import SYSTEMS, ImageSpec, build_model

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- readers ------------------------------------------------------------------------------------------------------

SEEDS = {name: list(reader.seeds()) for name, reader in READERS.items()}


@st.composite
def broken(draw, contents: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """A sound file, cut, with bytes changed, repeated, removed or replaced by others."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        size = draw(st.integers(1, 16))
        how = draw(st.sampled_from(["cut", "flip", "noise", "word", "repeat", "remove"]))
        if how == "cut":
            del content[at:]
        elif how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "noise":
            content[at : at + size] = draw(st.binary(min_size=1, max_size=16))
        elif how == "word" and words:
            content[at:at] = draw(st.sampled_from(words))
        elif how == "repeat":
            content[at:at] = content[at : at + size] * draw(st.integers(1, 9))
        elif how == "remove":
            del content[at : at + size]
    return bytes(content)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_broken_bytes_with_a_sentence_or_not_at_all(name):
    reader = READERS[name]

    @QUICK
    @given(content=broken(SEEDS[name], reader.words))
    def check(content):
        harmless(reader, content)

    check()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_what_is_sound(name):
    for content in SEEDS[name]:
        try:
            READERS[name].read(content)
        except UserError as error:
            # what is fuzzed from there on, but no whole file: a header without tensors, 32-bit values, a program
            if name not in ("checkpoint", "checkpoint-header", "image", "pickle", "pickle-stream"):
                raise AssertionError(name) from error


def test_zip_files_whose_packed_data_are_damaged():
    """Found by the fuzzer."""
    for content in SEEDS["zip"]:
        for at in range(30, len(content) // 2):
            harmless(READERS["zip"], content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])


# --- image files --------------------------------------------------------------------------------------------------

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["L", "P", "RGB"],
    "WEBP": ["RGB", "RGBA"],
    "PPM": ["1", "L", "RGB"],
}


@QUICK
@given(
    form=st.sampled_from(sorted(MODES)), choice=st.integers(0, 99),
    width=st.integers(1, 70), height=st.integers(1, 70), value=st.integers(0, 255), size=st.integers(1, 40),
    channels=st.sampled_from([1, 3]), turned=st.integers(0, 9),
)  # fmt: skip
def test_any_image_is_read_in_its_shape_and_a_constant_one_stays_constant(
    tmp_path_factory, form, choice, width, height, value, size, channels, turned
):
    mode = MODES[form][choice % len(MODES[form])]
    grey = Image.new("L", (width, height), value)
    image = grey.point(lambda v: v * 257, "I").convert("I;16") if mode == "I;16" else grey.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    path = tmp_path_factory.mktemp("images") / "image"
    image.save(path, form, **({"exif": exif} if form in ("PNG", "JPEG", "TIFF", "WEBP") and mode != "LAB" else {}))
    pixels = read_image(path, size, channels)
    assert pixels.shape == (channels, size, size)
    assert pixels.dtype == torch.uint8
    if mode not in ("1", "LAB", "CMYK"):  # black and white is dithered, the other two are other colours
        assert (pixels.int() - value).abs().max() <= (6 if form in ("JPEG", "WEBP") else 1)


# --- episodes -----------------------------------------------------------------------------------------------------


@QUICK
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=8), way=st.integers(-1, 9), shot=st.integers(-1, 7),
    queries=st.integers(-1, 7), episodes=st.integers(-1, 5), seed=st.integers(-1, 2**40),
)  # fmt: skip
def test_episodes_of_any_shape_are_sound_or_refused(counts, way, shot, queries, episodes, seed):
    images = torch.zeros(sum(counts), 1, 8, 8, dtype=torch.uint8)
    data = ClassImages(images, torch.tensor(counts), tuple(f"c{i}" for i in range(len(counts))))
    fit = sum(count >= shot + queries for count in counts)
    possible = min(way, shot, queries) >= 1 and fit >= way
    try:
        drawn = [EpisodeSampler(data, way=way, shot=shot, queries=queries).sample(3)]
        drawn.append(fixed_episodes(data, way=way, shot=shot, queries=queries, episodes=episodes, seed=seed))
    except UserError:
        assert not possible or episodes < 1 or seed < 0
        return
    assert possible
    for index in drawn:
        images = torch.cat([index.support, index.query], -1)
        assert (data.labels[images] == index.classes.unsqueeze(-1)).all()
        for episode in range(len(index)):
            assert len(set(index.classes[episode].tolist())) == way
            assert len(set(images[episode].flatten().tolist())) == way * (shot + queries)


KINDS = ["random", "all images equal", "all classes equal", "constant"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(way=st.integers(1, 4), shot=st.integers(1, 4), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_system_gives_probabilities_for_any_task(small_models, system, way, shot, kind, seed):
    model = small_models(system)
    images = torch.randint(0, 256, (way, shot + 1, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    if kind == "all images equal":
        images = images[:, :1].expand_as(images)
    elif kind == "all classes equal":
        images = images[:1].expand_as(images)
    elif kind == "constant":
        images = torch.full_like(images, seed)
    features = model.encode(images.flatten(0, 1).to(torch.uint8)).unflatten(0, images.shape[:2])
    probabilities = model.predict(features[None, :, :shot], features[None, :, shot], 3)
    assert probabilities.shape == (1, way, way)
    assert probabilities.isfinite().all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, way))
    if kind in ("all classes equal", "constant") and system in ("pn", "classifier", "rfs"):  # others sample or adapt
        torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / way), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def small_models(tiny_config):
    """``small_models("vsm")``: an untrained model of 16x16 images, in evaluation mode."""
    made = {}

    def make(system: str):
        if system not in made:
            torch.manual_seed(0)
            images = ImageSpec(3, 16, [0.5] * 3, [0.3] * 3, 5)
            made[system] = build_model(system, tiny_config(versa={"hidden": 8}), images).eval().requires_grad_(False)
        return made[system]

    return make


# --- configurations -----------------------------------------------------------------------------------------------


def says_something(error: UserError) -> None:
    if not str(error).strip():
        raise AssertionError("a refusal without a reason") from error


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
DEFAULTS = Config().to_dict()
PLACES = [(section, name) for section, values in DEFAULTS.items() if isinstance(values, dict) for name in values]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.sampled_from([*PLACES, ("systems", "")]), ANYTHING), min_size=1, max_size=3))
def test_any_setting_of_any_type_is_read_or_refused(changes):
    values = copy.deepcopy(DEFAULTS)
    for (section, name), value in changes:
        if name:
            values[section][name] = value
        else:
            values[section] = value
    for read in (Config.from_dict, lambda v: read_settings(v, "settings")):
        try:
            config = read(copy.deepcopy(values))
        except UserError as error:
            says_something(error)
            continue
        # what was read can be written and read again
        assert repr(Config.from_dict(config.to_dict())) == repr(config)


PARTS = {
    "prior_m": ["mixture", "support", "standard_normal"],
    "prior_z": ["memory", "empirical_bayes", "conditional", "standard_normal", "vamp"],
    "posterior_m": ["mixture", "moment_matched", "relaxed"],
    "posterior_z": ["amortised", "conjugate", "deterministic"],
    "likelihood": ["euclidean", "cosine", "gaussian"],
    "memory_use": ["latent", "rote", "transformed", "moments", "off", "shuffled"],
    "memory_update": ["attention", "mean", "none"],
    "objective": ["elbo", "importance_weighted"],
    "capacity": st.integers(0, 6), "address_dim": st.integers(1, 5), "top_k": st.integers(0, 3),
    "within_rank": st.integers(0, 9), "retrieve": st.integers(0, 3), "particles": st.integers(1, 3),
    "alpha": [0.0, 0.5, 0.99], "beta_z": [0.0, 1e-4, 1.0, 100.0], "beta_m": [0.0, 1e-4, 1.0, 100.0],
    "warmup": [0.0, 0.2, 1.0],
}  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(parts=st.fixed_dictionaries({k: st.sampled_from(v) if isinstance(v, list) else v for k, v in PARTS.items()}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_combination_of_parts_trains_a_step_or_is_refused(tiny_config, parts):
    torch.manual_seed(0)
    try:
        config = tiny_config(model=parts)
        model = build_model("vsm", config, ImageSpec(3, 16, [0.5] * 3, [0.3] * 3, 5))
    except UserError as error:
        says_something(error)
        return
    images = torch.rand(2, 3, 3, 3, 16, 16)
    for classes in ([[0, 1, 2], [2, 3, 4]], [[4, 3, 1], [0, 2, 3]]):
        try:
            loss, _ = model(images, 1, torch.tensor(classes), torch.tensor(0.5))
        except UserError as error:
            says_something(error)
            return
        assert math.isfinite(loss)
        loss.backward()
        model.after_step()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- memory -------------------------------------------------------------------------------------------------------


class MemoryMachine(RuleBasedStateMachine):
    """Batches of any classes in any order against a model of what must be stored."""

    @initialize(
        capacity=st.integers(1, 5), update=st.sampled_from(["attention", "mean", "none"]), seed=st.integers(0, 99),
        within=st.integers(0, 2),
    )  # fmt: skip
    def start(self, capacity, update, seed, within):
        torch.manual_seed(seed)
        self.memory = SemanticMemory(4, capacity=capacity, update=update, address_dim=2, within_rank=within)
        self.capacity = capacity
        self.written: dict[int, int] = {}  # class -> batch in which it was written last
        self.counts: dict[int, int] = {}
        self.batch = 0

    @rule(
        classes=st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True), min_size=1, max_size=3),
        images=st.integers(1, 3), scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    )  # fmt: skip
    def consolidate(self, classes, images, scale):
        features = torch.randn(len(classes), 2, images, 4) * scale
        with torch.no_grad():
            self.memory.store(self.memory.consolidate(features, torch.tensor(classes)))
        self.batch += 1
        flat = [c for task in classes for c in task]
        here = sorted(set(flat))
        room = self.capacity - sum(c in self.written for c in here)
        for c in [c for c in here if c not in self.written][:room]:
            if len(self.written) == self.capacity:
                oldest = min(self.written[k] for k in self.written if k not in here)
                gone = [k for k, when in self.written.items() if when == oldest and k not in here]
                rows = {k: self.memory_row_before[k] for k in gone}
                victim = min(rows, key=rows.get)
                del self.written[victim], self.counts[victim]
            self.written[c], self.counts[c] = self.batch, 0
        for c in here:
            if c in self.written:
                self.written[c] = self.batch
                self.counts[c] += images * flat.count(c)

    @property
    def memory_row_before(self) -> dict[int, int]:
        return self.rows

    @precondition(lambda self: hasattr(self, "memory"))
    @rule(tasks=st.integers(1, 3), ways=st.integers(1, 4), data=st.data())
    def recall(self, tasks, ways, data):
        own = data.draw(st.none() | st.lists(st.integers(0, 7), min_size=ways, max_size=ways, unique=True))
        own = None if own is None else torch.tensor([own] * tasks)
        before = copy.deepcopy(self.memory.state_dict())
        recall = self.memory(torch.randn(tasks, ways, 4), own)
        weights = recall.weights(self.capacity)
        assert weights.shape == (tasks, ways, self.capacity)
        assert weights.isfinite().all()
        assert (weights.sum(-1) < 1 + 1e-5).all()
        stored = self.memory.classes[: self.capacity]
        forbidden = stored < 0
        if own is not None:
            forbidden = forbidden | (stored.unsqueeze(-1) == own[0]).any(-1)
        assert (weights[..., forbidden] == 0).all()
        assert all(torch.equal(before[k], v) for k, v in self.memory.state_dict().items())

    @precondition(lambda self: hasattr(self, "memory"))
    @rule()
    def save_and_load(self):
        buffer = io.BytesIO()
        torch.save(self.memory.state_dict(), buffer)
        buffer.seek(0)
        self.memory.load_state_dict(torch.load(buffer, weights_only=True))

    @precondition(lambda self: hasattr(self, "memory"))
    @rule()
    def refresh(self):
        self.memory.refresh()

    @precondition(lambda self: hasattr(self, "memory"))
    @invariant()
    def it_holds_what_it_should(self):
        stored = self.memory.classes[: self.capacity].tolist()
        self.rows = {c: row for row, c in enumerate(stored) if c >= 0}
        assert set(self.rows) == set(self.written)
        assert {c: int(self.memory.counts[row]) for c, row in self.rows.items()} == self.counts
        for name, value in self.memory.state_dict().items():
            assert not value.is_floating_point() or value.isfinite().all(), name
        for buffer in (self.memory.entries, self.memory.variances, self.memory.counts):
            assert not buffer[-2:].any()  # the default and the scratch row
        assert (self.memory.variances >= 0).all()


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, derandomize=True)
