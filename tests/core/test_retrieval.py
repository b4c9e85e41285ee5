"""Recall from a large memory by exact search: the same weights as recall of all entries, in bounded memory."""

import pytest
import torch

from pyro_vsm import retrieval
from pyro_vsm.errors import UserError

from .small import memory, randomise, vsm
from .test_memory import copy


def both(start, k, **options):
    """The same contents recalled by search and in full, both addressing the k most similar."""
    return copy(start, top_k=k, retrieve=k, **options), copy(start, top_k=k, **options)


@pytest.mark.parametrize("entries", [0, 1, 5, 30])
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("chunk", [4, 2**24])
def test_weights_are_those_of_the_k_most_similar_of_all_entries(entries, k, chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "ELEMENTS", chunk)
    start = randomise(memory(4, entries, capacity=40))
    few, all_of_them = both(start, k)
    support, own = torch.randn(2, 3, 4), torch.tensor([[0, 4, 7], [2, 11, 3]])
    for mine in (None, own):
        found, full = few(support, mine), all_of_them(support, mine)
        torch.testing.assert_close(found.weights(40), full.weights(40), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.empty, full.empty.expand(2))
        read = [r.log_address.exp() @ r.values for r in (found, full)]
        torch.testing.assert_close(read[0], read[1])


def test_what_the_batch_has_just_written_is_found_with_its_gradient():
    """Known classes, new ones, and some that push old entries out of a full memory."""
    start = randomise(memory(4, 12, capacity=12))
    few, all_of_them = both(start, 5)
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    classes = torch.tensor([[0, 4, 20], [20, 30, 2]])
    seen = []
    for m in (few, all_of_them):
        write = m.consolidate(features, classes)
        recall = m(features[:, :, 0], classes, write)
        out = recall.log_address.exp() @ recall.values
        leaves = [features, m.key.weight, m.query.weight, *m.update.parameters()]
        seen.append((out, recall.weights(12), torch.autograd.grad(out.square().sum(), leaves)))
        m.store(write)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-4)
    assert seen[0][2][0].abs().sum() > 0
    assert torch.equal(few.entries, all_of_them.entries)


def test_a_task_sees_nothing_that_another_task_of_the_batch_found():
    m = randomise(memory(4, 30, capacity=40, retrieve=3))
    support = torch.randn(3, 2, 4)
    together = m(support)
    for t in range(3):
        alone = m(support[t : t + 1])
        torch.testing.assert_close(together.weights(40)[t], alone.weights(40)[0])
        torch.testing.assert_close(together.mean_variance()[1][t], alone.mean_variance()[1][0])
        assert together.allowed[t].sum() <= 6
        used = together.rows[together.allowed[t, :-1]]
        assert len(used) == len(set(used.tolist()))


def test_a_model_that_retrieves_trains_and_predicts():
    model = vsm(8, retrieve=2, capacity=50)
    for step in range(3):
        features = torch.randn(2, 3, 4, 8, requires_grad=True)
        loss, _ = model.loss(features, 1, torch.randperm(20)[:6].view(2, 3), torch.tensor(step / 3))
        loss.backward()
        model.after_step()
        assert torch.isfinite(features.grad).all()
    model.eval()
    p = model.predict(torch.randn(2, 3, 1, 8), torch.randn(2, 4, 8), 5)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 4))
    seen = model.infer(torch.randn(3, 1, 8), torch.randn(4, 8), 5)
    assert seen.addressing.shape == (3, 50)
    torch.testing.assert_close(seen.addressing.sum(-1), torch.ones(3))


def test_a_search_keeps_no_similarities_of_all_entries(monkeypatch):
    """The largest tensor that a search makes is bounded, whatever C."""
    monkeypatch.setattr(retrieval, "ELEMENTS", 1000)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            if isinstance(out, torch.Tensor) and not out._is_view():
                largest.append(out.numel())
            return out

    query, entries = torch.randn(2, 5, 3), torch.randn(5000, 3)
    usable, classes = torch.ones(5000, dtype=torch.bool), torch.arange(5000)
    with Watch():
        own = torch.zeros(2, 5, dtype=torch.int64)
        retrieval.Nearest.none(query, 4).look(query, entries, usable, classes, own)
    assert 500 < max(largest) <= 1000


def test_retrieval_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="shuffled"):
        memory(4, 0, retrieve=3, shuffled=True)
    with pytest.raises(UserError, match="retrieve >= 0"):
        memory(4, 0, retrieve=-1)
