"""The semantic memory: what consolidation writes, what recall may see, what stays as it is."""

import itertools

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from pyro_vsm import memory as memory_module
from pyro_vsm.errors import UserError
from pyro_vsm.memory import SemanticMemory
from pyro_vsm.memory_updates import MEMORY_UPDATES, AttentionUpdate, MeanUpdate
from pyro_vsm.memory_uses import MEMORY_USES, Moments, Rote, Transformed

from .contract import MemoryUpdateContract, MemoryUseContract, name_of, uncovered
from .small import memory, randomise, task, vsm

UPDATES = [
    "attention",
    {"class_path": "attention", "init_args": {"values": "projected", "activation": "elu"}},
    "mean",
    "none",
]
USES = ["latent", "rote", "transformed", "moments", "off", "shuffled"]
BUFFERS = ["entries", "variances", "counts", "classes", "written", "step"]


def test_every_registered_update_and_use_is_covered():
    assert not uncovered(MEMORY_UPDATES, UPDATES)
    assert not uncovered(MEMORY_USES, USES)


@pytest.mark.parametrize("spec", UPDATES, ids=name_of)
class TestMemoryUpdate(MemoryUpdateContract):
    pass


@pytest.mark.parametrize("spec", USES, ids=name_of)
class TestMemoryUse(MemoryUseContract):
    def untrained(self, spec):
        # nothing of a closed memory is read, and a layer whose input m is 0 has no gradient in its weight
        return {"off": {"memory", "program.prior_z.net.trunk.0.weight"}}.get(spec, set())


def state(m: SemanticMemory) -> dict[str, torch.Tensor]:
    return {name: getattr(m, name).clone() for name in BUFFERS}


def by_class(m: SemanticMemory) -> dict[int, tuple[torch.Tensor, ...]]:
    """Entry, variance and count of every class that the memory holds."""
    rows = [(int(c), r) for r, c in enumerate(m.classes[: m.capacity]) if c >= 0]
    assert len({c for c, _ in rows}) == len(rows), "a class has two rows"
    return {c: (m.entries[r], m.variances[r], m.counts[r]) for c, r in rows}


def batch(*tasks: list[int], images: int = 3, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features and the class ids of a batch of tasks."""
    classes = torch.tensor(tasks)
    return torch.randn(*classes.shape, images, dim), classes


def consolidated(m: SemanticMemory, features: torch.Tensor, classes: torch.Tensor) -> SemanticMemory:
    with torch.no_grad():
        m.store(m.consolidate(features, classes))
    return m


def copy(m: SemanticMemory, **options) -> SemanticMemory:
    """Another memory with the same parameters and contents."""
    other = SemanticMemory(m.dim, **{"capacity": m.capacity, "address_dim": 4, "alpha": m.alpha, **options})
    other.load_state_dict(m.state_dict())
    return other


def assert_same(a, b):
    assert a.keys() == b.keys()
    for c in a:
        torch.testing.assert_close(a[c], b[c], atol=1e-5, rtol=1e-5)


# --- consolidation --------------------------------------------------------------------------------------------


def test_an_unseen_class_is_appended_as_its_mean_feature():
    m, (features, classes) = memory(4, 0), batch([7, 3, 5])
    held = by_class(consolidated(m, features, classes))
    assert set(held) == {3, 5, 7}
    for n, c in enumerate([7, 3, 5]):
        entry, variance, count = held[c]
        torch.testing.assert_close(entry, features[0, n].mean(0))
        torch.testing.assert_close(variance, features[0, n].var(0))
        assert count == 3


def test_a_known_class_moves_by_the_equation():
    """``M_c <- alpha M_c + (1 - alpha) Mbar_c`` for entry and variance; the count grows."""
    m, (features, classes) = memory(4, 3, alpha=0.7, update="mean"), batch([2, 0])
    before = {c: tuple(t.clone() for t in held) for c, held in by_class(m).items()}
    held = by_class(consolidated(m, features, classes))
    for n, c in enumerate([2, 0]):
        torch.testing.assert_close(held[c][0], 0.7 * before[c][0] + 0.3 * features[0, n].mean(0))
        torch.testing.assert_close(held[c][1], 0.7 * before[c][1] + 0.3 * features[0, n].var(0))
        assert held[c][2] == before[c][2] + 3
    assert_same({1: held[1]}, {1: before[1]})


def test_attention_is_the_papers_equation():
    """``e_i = LeakyReLU(w^T [U M_c ; U h_i])``, ``beta = softmax(e)``, ``Mbar_c = sum_i beta_i V h_i``, by a loop."""
    update = randomise(AttentionUpdate(4, projection=3, values="projected", activation="elu"))
    entries, nodes = torch.randn(2, 4), torch.randn(5, 4)
    member = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)
    U, w, V = update.U.weight, update.w, update.V.weight
    for c in range(2):
        graph = [entries[c], *nodes[member[c]]]
        e = torch.stack([F.leaky_relu(w @ torch.cat([U @ entries[c], U @ h])) for h in graph])
        expected = F.elu(sum(b * (V @ h) for b, h in zip(e.softmax(0), graph)))
        torch.testing.assert_close(update(entries, nodes, member)[c], expected)


@pytest.mark.parametrize("update", UPDATES, ids=name_of)
def test_the_order_of_classes_and_tasks_does_not_matter(update):
    """Known, unseen and repeated classes, in a memory too small for all: every order gives the same memory."""
    start = memory(4, 3, capacity=5, update=update)
    randomise(start)
    features, classes = batch([1, 9, 4], [9, 8, 0])
    expected = by_class(consolidated(copy(start, update=update), features, classes))
    for tasks in itertools.permutations(range(2)):
        for ways in itertools.permutations(range(3)):
            shuffled = features[list(tasks)][:, list(ways)], classes[list(tasks)][:, list(ways)]
            assert_same(by_class(consolidated(copy(start, update=update), *shuffled)), expected)


@pytest.mark.parametrize("update", UPDATES, ids=name_of)
def test_permuting_the_entries_permutes_the_result(update):
    start = randomise(memory(4, 6, update=update))
    order = torch.cat([torch.randperm(6), torch.tensor([6, 7])])
    permuted = copy(start, update=update)
    for name in BUFFERS[:-1]:
        getattr(permuted, name).copy_(getattr(start, name)[order])
    features, classes = batch([1, 3, 5], [2, 3, 0])
    assert_same(by_class(consolidated(permuted, features, classes)), by_class(consolidated(start, features, classes)))


@pytest.mark.parametrize("known", [False, True])
def test_a_class_in_several_tasks_is_combined(known):
    """As if all its images had stood in one task."""
    start = memory(4, 4 if known else 0)
    features, classes = batch([1, 2], [3, 1], [1, 0])
    together = torch.cat([features[0, 0], features[1, 1], features[2, 0]]).reshape(1, 1, 9, 4)
    once = by_class(consolidated(copy(start), features, classes))
    alone = by_class(consolidated(copy(start), together, torch.tensor([[1]])))
    assert_same({1: once[1]}, {1: alone[1]})
    assert once[1][2] == 9 + 4 * known


def test_none_never_changes_an_entry():
    m, (features, classes) = memory(4, 3, update="none"), batch([0, 1, 5])
    before = {c: tuple(t.clone() for t in held[:2]) for c, held in by_class(m).items()}
    held = by_class(consolidated(m, features, classes))
    for c in range(3):
        assert torch.equal(held[c][0], before[c][0])
        assert torch.equal(held[c][1], before[c][1])
    torch.testing.assert_close(held[5][0], features[0, 2].mean(0))


def test_one_image_has_no_variance():
    held = by_class(consolidated(memory(4, 0), *batch([2], images=1)))
    assert (held[2][1] == 0).all()


# --- capacity -------------------------------------------------------------------------------------------------


def test_the_entry_written_longest_ago_makes_room():
    m = memory(4, 0, capacity=3)
    for classes in ([0, 1], [2], [0], [5]):  # 1 is the oldest, then 2, then 0
        consolidated(m, *batch(classes))
    assert set(by_class(m)) == {0, 2, 5}
    consolidated(m, *batch([6]))
    assert set(by_class(m)) == {0, 5, 6}
    assert by_class(m)[6][2] == 3  # the count starts again


def test_free_rows_are_used_before_any_class_is_forgotten():
    m = consolidated(memory(4, 4, capacity=6), *batch([8, 9]))
    assert set(by_class(m)) == {0, 1, 2, 3, 8, 9}


def test_a_class_of_the_batch_never_makes_room():
    m = consolidated(memory(4, 3, capacity=3), *batch([0, 7, 8]))
    assert set(by_class(m)) == {0, 7, 8}
    assert by_class(m)[0][2] == 4 + 3


@pytest.mark.parametrize("entries", [0, 2, 3])
def test_new_classes_beyond_the_capacity_are_not_stored(entries):
    """Those with the largest ids; the rest of the memory is whole, and nothing is read from the scratch row."""
    m, (features, classes) = memory(4, entries, capacity=3), batch([9, 6, 8], [5, 7, 9])
    write = m.consolidate(features, classes)
    with torch.no_grad():
        seen = m(torch.randn(2, 3, 4), write=write)
    assert torch.isfinite(seen.entries).all()
    m.store(write)
    held = by_class(m)
    assert set(held) == {5, 6, 7}
    for c, (t, n) in {5: (1, 0), 6: (0, 1), 7: (1, 1)}.items():
        torch.testing.assert_close(held[c][0], features[t, n].mean(0))
    assert (m.entries[-2:] == 0).all()
    assert (m.classes[-2:] == -1).all()


def test_the_memory_stays_sound_over_many_batches():
    """200 random batches against a plain dictionary with the stated policy (which ``mean`` makes simple)."""
    m, model, written = memory(3, 0, capacity=7, update="mean", alpha=0.8), {}, {}
    generator = torch.Generator().manual_seed(1)
    for step in range(200):
        classes = torch.randint(0, 12, (2, 3), generator=generator)
        features = torch.randn(2, 3, 2, 3, generator=generator)
        present = sorted(set(classes.flatten().tolist()))
        for c in present:
            mean = features[classes == c].flatten(0, 1).mean(0)
            if c in model:
                model[c] = 0.8 * model[c] + 0.2 * mean
                continue
            if len(model) == 7:
                old = [x for x in model if x not in present]
                if not old:
                    continue
                # the oldest; of several, the one in the lowest row
                row = {int(x): r for r, x in enumerate(m.classes[:7])}
                oldest = min(old, key=lambda x: (written[x], row[x]))
                del model[oldest], written[oldest]
                model[c] = mean
                continue
            model[c] = mean
        # the module may give any freed row to any new class: dates are set after all rows are given
        written.update({c: step for c in present if c in model})
        consolidated(m, features, classes)
        held = by_class(m)
        assert set(held) == set(model)
        for c in model:
            torch.testing.assert_close(held[c][0], model[c], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"capacity": 0}, {"alpha": 1.0}, {"alpha": -0.1}, {"top_k": -1}, {"address_dim": 0}]
)
def test_bad_options(options):
    with pytest.raises(UserError, match="give capacity"):
        memory(4, 0, **options)


@pytest.mark.parametrize("options", [{"values": "other"}, {"activation": "tanh"}])
def test_bad_options_of_attention(options):
    with pytest.raises(UserError, match="give values"):
        AttentionUpdate(4, **options)


# --- recall ---------------------------------------------------------------------------------------------------


def test_addressing_is_a_softmax_of_the_learned_similarity():
    m, support = memory(4, 5), torch.randn(2, 3, 4)
    got = m(support).log_address.exp()
    for t, n in itertools.product(range(2), range(3)):
        g = torch.stack([(m.key(m.entries[a]) @ m.query(support[t, n])) / 4**0.5 for a in range(5)])
        torch.testing.assert_close(got[t, n, :5], g.softmax(0))
    assert (got[..., 5:] == 0).all()


def test_own_classes_are_left_out():
    m, own = memory(4, 5), torch.tensor([[0, 4], [2, 11]])
    seen = m(torch.randn(2, 2, 4), own)
    assert seen.allowed[:, :5].tolist() == [[False, True, True, True, False], [True, True, False, True, True]]
    assert (seen.log_address.exp()[0, :, [0, 4]] == 0).all()
    assert not seen.empty.any()


def test_own_classes_do_not_influence_their_task():
    """Whatever is stored of a task's own classes, its recall is the same."""
    m, support, own = memory(4, 5), torch.randn(1, 2, 4), torch.tensor([[0, 4]])
    before = m(support, own)
    m.entries[[0, 4]] += 100
    m.variances[[0, 4]] += 100
    after = m(support, own)
    torch.testing.assert_close(after.log_address, before.log_address)
    torch.testing.assert_close(after.mean_variance()[1:], before.mean_variance()[1:])


def test_a_task_of_every_stored_class_falls_back_to_the_default():
    m, own = memory(4, 3), torch.tensor([[0, 1, 2]])
    seen = m(torch.randn(1, 3, 4), own)
    assert seen.empty.all()
    torch.testing.assert_close(seen.log_address.exp()[..., -1], torch.ones(1, 3))
    _, mean, within = seen.mean_variance()
    assert (mean == 0).all()
    assert (within == 1).all()


def test_training_leaves_own_classes_out_and_evaluation_does_not(monkeypatch):
    """The program sees what the memory was asked: own ids in :meth:`VSM.loss`, none in :meth:`VSM.predict`."""
    model, asked = vsm(4), []
    forward = model.memory.forward
    monkeypatch.setattr(
        model.memory, "forward", lambda s, own, *a, **k: asked.append(own) or forward(s, own, *a, **k)
    )
    classes = torch.tensor([[0, 1], [2, 3]])
    model.loss(torch.randn(2, 2, 3, 4), 1, classes, torch.tensor(0.0))
    model.predict(torch.randn(2, 2, 1, 4), torch.randn(2, 3, 4), 2)
    assert torch.equal(asked[0], classes)
    assert asked[1] is None


def test_the_memory_just_consolidated_is_what_other_tasks_recall():
    m, (features, classes) = memory(4, 4), batch([0, 1], [2, 3])
    write = m.consolidate(features, classes)
    seen = m(features.mean(2), classes, write)
    stored = consolidated(copy(m), features, classes)(features.mean(2), classes)
    for name in ("entries", "variances", "counts", "allowed", "log_address"):
        torch.testing.assert_close(getattr(seen, name), getattr(stored, name))
    assert seen.entries.requires_grad
    assert not stored.entries.requires_grad


@pytest.mark.parametrize("k", [1, 2, 5, 50])
def test_top_k_keeps_the_largest_weights_and_renormalises_exactly(k):
    m, support = memory(4, 6), torch.randn(2, 3, 4)
    full = m(support).log_address.exp()
    top = copy(m, top_k=k)(support).log_address.exp()
    value, index = full.topk(min(k, 6), -1)
    expected = torch.zeros_like(full).scatter(-1, index, value / value.sum(-1, keepdim=True))
    torch.testing.assert_close(top, expected, atol=1e-7, rtol=1e-5)


def test_top_k_never_reaches_what_is_left_out():
    m, own = memory(4, 6, top_k=5), torch.tensor([[0, 1, 2]])
    weights = m(torch.randn(1, 3, 4), own).log_address.exp()
    assert ((weights > 0).sum(-1) == 3).all()
    assert (weights[..., :3] == 0).all()


@pytest.mark.parametrize("entries", [0, 1, 2, 5, 6, 12])
@pytest.mark.parametrize("own", [None, [[0, 1, 2], [3, 4, 11]]])
def test_shuffled_reads_another_entry_and_never_an_own_one(entries, own):
    m = memory(4, entries, capacity=12, shuffled=True)
    own = own if own is None else torch.tensor(own)
    seen = m(torch.randn(2, 3, 4), own)
    allowed = seen.allowed.expand(2, -1)  # one row where both tasks may use the same
    for t in range(2):
        mine = set() if own is None else set(own[t].tolist())
        for a in range(12):
            if not allowed[t, a]:
                continue
            addressed = int(m.classes[a])
            (read,) = [int(c) for c, e in zip(m.classes, m.entries[:12]) if torch.equal(e, seen.values[a])]
            assert addressed not in mine
            assert read not in mine
            assert read != addressed
    if entries >= 2 and own is None:
        assert seen.allowed[:, :entries].all()  # nothing is lost
        assert torch.equal(seen.values[:entries].sort(0).values, m.entries[:entries].sort(0).values)  # a permutation
    if entries < 2:
        assert seen.empty.all()


def test_moments_over_the_allowed_entries():
    m, own = memory(4, 4), torch.tensor([[1, 2], [3, 9]])
    weight, mean, within = m(torch.randn(2, 2, 4), own).mean_variance()
    torch.testing.assert_close(weight.sum(-1), torch.ones(2))
    torch.testing.assert_close(mean[0], m.entries[[0, 3]].mean(0))
    torch.testing.assert_close(within[1], m.variances[[0, 1, 2]].mean(0))


def test_rote_and_transformed():
    given = task(4, 5)
    gamma = given.recall.log_address.exp()
    read = torch.einsum("tna,ad->tnd", gamma, given.recall.entries)
    torch.testing.assert_close(Rote(4)(given), read)
    transformed = Transformed(4)
    torch.testing.assert_close(transformed(given), transformed.net(read))


def test_moments_read_no_single_entry():
    given = task(4, 5)
    allowed = given.recall.allowed.expand(len(given.support), -1)
    wanted = torch.stack([given.recall.entries[rows].mean(0) for rows in allowed])
    torch.testing.assert_close(Moments(4)(given), wanted.unsqueeze(1).expand(-1, given.support.shape[1], -1))


# --- learning, evaluation, files ------------------------------------------------------------------------------


def training_step(model, optimiser, images=None):
    images = torch.rand(2, 3, 4, 1, 4, 4) if images is None else images
    classes = torch.stack([torch.randperm(6)[:3] for _ in range(2)])
    optimiser.zero_grad()
    model(images, 1, classes, torch.tensor(0.5))[0].backward()
    optimiser.step()
    model.after_step()


def test_the_update_learns():
    """U and w get gradients, from the recall of other tasks in the same batch, and change."""
    model = vsm(8)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    training_step(model, optimiser)  # fills the memory: there was nothing to update
    update = model.memory.update
    before = update.U.weight.clone(), update.w.clone()
    training_step(model, optimiser)
    for p, old in zip((update.U.weight, update.w), before):
        assert torch.isfinite(p.grad).all()
        assert (p.grad != 0).any()
        assert not torch.equal(p, old)


def test_one_task_alone_gives_the_update_no_gradient():
    """Its own classes are left out, so nothing of what it wrote is recalled: the gradient is the other tasks'."""
    m, (features, classes) = memory(4, 4), batch([0, 1])
    write = m.consolidate(features, classes)
    seen = m(features.mean(2), classes, write)
    (seen.log_address.exp() @ seen.values).square().sum().backward()
    assert not m.update.w.grad.any()


def test_stored_entries_are_detached():
    m, (features, classes) = memory(4, 0), batch([0, 1])
    m.store(m.consolidate(features.requires_grad_(), classes))
    assert not m.entries.requires_grad
    m.store(m.consolidate(features, classes))  # and a second step needs nothing of the first one's graph
    m.entries.sum()


def test_evaluation_leaves_the_memory_bit_identical():
    model = vsm(4)
    training_step(model, torch.optim.SGD(model.parameters(), 0.1))
    before = state(model.memory)
    model.eval()
    model.predict(torch.randn(2, 3, 2, 4), torch.randn(2, 5, 4), 3)
    model.infer(torch.rand(3, 2, 1, 4, 4), torch.rand(5, 1, 4, 4), 7)
    model.loss(torch.randn(2, 3, 3, 4), 1, torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor(1.0))  # no after_step
    assert all(torch.equal(before[name], now) for name, now in state(model.memory).items())
    model.after_step()
    assert not torch.equal(before["entries"], model.memory.entries)


def test_a_closed_memory_is_never_read():
    model = vsm(4, memory_use="off")
    support, query = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 4)
    torch.manual_seed(1)
    before = model.predict(support, query, 5)
    consolidated(model.memory, *batch([0, 1, 2]))
    torch.manual_seed(1)
    assert torch.equal(model.predict(support, query, 5), before)


def test_64_classes_of_1600_features_are_saved_and_loaded_bit_exactly():
    m = SemanticMemory(1600, capacity=64)
    features, classes = batch(list(range(64)), images=3, dim=1600)
    consolidated(m, features, classes)
    consolidated(m, *batch(list(range(32)), images=3, dim=1600))
    other = SemanticMemory(1600, capacity=64)
    other.load_state_dict(load(save(m.state_dict())))
    assert m.state_dict().keys() == other.state_dict().keys()
    for name, value in m.state_dict().items():
        assert value.dtype == other.state_dict()[name].dtype
        assert torch.equal(value, other.state_dict()[name]), name
    support = torch.randn(2, 5, 1600)
    assert torch.equal(m(support).log_address, other(support).log_address)
    assert_same(by_class(consolidated(m, features, classes)), by_class(consolidated(other, features, classes)))


def test_autocast_changes_nothing_in_the_memory():
    m, (features, classes) = memory(4, 3), batch([0, 1], [5, 4])
    expected = m.consolidate(features, classes)
    seen = m(features.mean(2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = m.consolidate(features, classes)
        recalled = m(features.mean(2))
    for name in ("rows", "entries", "variances", "counts"):
        assert torch.equal(getattr(inside, name), getattr(expected, name)), name
    assert torch.equal(recalled.log_address, seen.log_address)


def test_equal_features_do_no_harm():
    """A constant image, all images of a class alike, features of zero."""
    m, features = memory(4, 2), torch.zeros(1, 3, 3, 4, requires_grad=True)
    write = m.consolidate(features, torch.tensor([[0, 1, 5]]))
    seen = m(features.mean(2), write=write)
    (seen.values.sum() + seen.log_address.exp().square().sum() + seen.variances.sum()).backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(write.entries).all()
    assert (write.variances[2] == 0).all()


@pytest.mark.cuda
def test_cuda_gives_the_same_memory():
    m, (features, classes) = memory(4, 3), batch([0, 1, 9], [5, 9, 4])
    other = copy(m).cuda()
    consolidated(m, features, classes)
    consolidated(other, features.cuda(), classes.cuda())
    for name, value in state(m).items():
        torch.testing.assert_close(getattr(other, name).cpu(), value, atol=1e-5, rtol=1e-5)


def test_mean_update():
    nodes, member = torch.randn(4, 3), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    got = MeanUpdate(3)(torch.zeros(2, 3), nodes, member)
    torch.testing.assert_close(got, torch.stack([nodes[:2].mean(0), nodes[3]]))


def test_the_backbone_learns_through_the_memory():
    """What is consolidated are the backbone's features: the gradient passes through recall and consolidation."""
    model = vsm(8)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    training_step(model, optimiser)
    m, images = model.memory, torch.rand(2, 3, 2, 1, 4, 4)
    features = model.encode(images.flatten(0, 2)).unflatten(0, (2, 3, 2))
    classes = torch.tensor([[0, 1, 2], [3, 4, 5]])
    seen = m(features.detach().mean(2), classes, m.consolidate(features, classes))
    model.encoder.zero_grad()
    (seen.log_address.exp() @ seen.values).square().sum().backward()
    assert (model.encoder.backbone.layer[1].weight.grad != 0).any()


@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_rows_by_comparison_are_those_by_search(capacity, monkeypatch):
    """Free and taken rows, known and new classes, more new ones than there is room for."""
    for seed in range(40):
        torch.manual_seed(seed)
        classes = torch.where(torch.rand(capacity) < 0.3, -1, torch.randperm(20)[:capacity])
        written = torch.randint(0, 4, (capacity,))
        slots = torch.randint(0, 20, (6,))
        found = []
        for most in (0, 1024):
            monkeypatch.setattr(memory_module, "PAIRWISE", most)
            found.append(memory_module.rows_of(slots, classes, written, False))
        for one, other in zip(*found):
            assert torch.equal(one, other)
