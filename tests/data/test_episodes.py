"""Fixed episodes, the device sampler, and gathering."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vsm.data.augment import AugmentConfig, augment
from pyro_vsm.data.episodes import EpisodeIndex, EpisodeSampler, fixed_episodes, gather
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError

UNEQUAL = [9, 4, 30, 12, 7, 20]


def draw_fixed(data, episodes, way=3, shot=2, queries=4, seed=0):
    return fixed_episodes(data, way=way, shot=shot, queries=queries, episodes=episodes, seed=seed)


def draw_sampled(data, episodes, way=3, shot=2, queries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return EpisodeSampler(data, way=way, shot=shot, queries=queries, generator=generator).sample(episodes)


DRAWS = pytest.mark.parametrize("draw", [draw_fixed, draw_sampled])


@DRAWS
@pytest.mark.parametrize("counts", [UNEQUAL, [6] * 4])
def test_episodes_hold_distinct_classes_and_images_of_them(make_set, draw, counts):
    data = make_set(counts)
    index = draw(data, 200)
    assert (len(index), index.way, index.shot, index.queries) == (200, 3, 2, 4)
    for tensor in (index.classes, index.support, index.query):
        assert tensor.dtype == torch.int64
    sorted_classes = index.classes.sort(1).values
    assert (sorted_classes[:, 1:] > sorted_classes[:, :-1]).all()
    images = torch.cat([index.support, index.query], 2)
    assert (data.labels[images] == index.classes[..., None]).all()
    images = images.sort(2).values
    assert (images[..., 1:] > images[..., :-1]).all()


@DRAWS
def test_small_classes_are_left_out_while_enough_remain(make_set, draw):
    index = draw(make_set(UNEQUAL), 100)
    assert set(index.classes.flatten().tolist()) == {0, 2, 3, 4, 5}  # class 1 has 4 images, 6 are needed


@DRAWS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"way": 7}, "7-way episodes need 7 classes, but the split has 6"),
        ({"shot": 6}, r"'class 1' has 4 and only 3 of 6 classes have enough for 5 ways"),
        ({"way": 0}, "way is 0"),
        ({"shot": 0}, "shot is 0"),
        ({"queries": -1}, "queries is -1"),
    ],
)
def test_too_few_classes_or_images_are_refused(make_set, draw, arguments, message):
    with pytest.raises(UserError, match=message):
        draw(make_set(UNEQUAL), 10, **{"way": 5, "shot": 1, "queries": 4, **arguments})


@DRAWS
def test_a_class_may_be_used_up(make_set, draw):
    index = draw(make_set([5, 5]), 50, way=2, shot=2, queries=3)
    assert (
        torch.cat([index.support, index.query], 2).sort(2).values == torch.arange(10).view(2, 5)[index.classes]
    ).all()


def chi_square(counts, draws, size):
    """p-value of uniform counts when each draw takes `size` of `len(counts)` without replacement."""
    n = len(counts)
    p = size / n
    statistic = ((counts - draws * p) ** 2).sum() / (draws * p * (1 - p) * n / (n - 1))
    return stats.chi2.sf(statistic, n - 1)


@DRAWS
def test_classes_and_images_are_covered_evenly(make_set, draw):
    counts = [11, 7, 8, 16, 9, 13, 7]
    data = make_set(counts)
    index = draw(data, 6000)
    classes = index.classes.numpy()
    assert chi_square(np.bincount(classes.ravel(), minlength=7), 6000, 3) > 1e-4
    assert chi_square(np.bincount(classes[:, 0], minlength=7), 6000, 1) > 1e-4
    for c, (start, count) in enumerate(zip(data.offsets.tolist(), counts)):
        chosen = classes == c
        for images, size in (
            (torch.cat([index.support, index.query], 2).numpy()[chosen], 6),
            (index.support[..., :1].numpy()[chosen], 1),
            (index.query[..., -1:].numpy()[chosen], 1),
        ):
            seen = np.bincount(images.ravel() - start, minlength=count)
            assert chi_square(seen, len(images), size) > 1e-4


def test_fixed_episodes_stay_what_they_are(make_set):
    """The list that results are compared on: a change of this hash makes old results incomparable."""
    index = draw_fixed(make_set([20] * 8), 5000, way=5, shot=1, queries=15, seed=7)
    total = hashlib.sha256()
    for tensor in (index.classes, index.support, index.query):
        total.update(tensor.numpy().astype("<i8").tobytes())
    assert total.hexdigest() == "e4b9cabed49acf9621fd99baf18b53511067fc2c645d555fc3d2b4b984d2f09b"


def test_fixed_episodes_depend_on_the_seed_and_not_on_pixels(make_set):
    a, b = make_set([20] * 8), make_set([20] * 8, size=4, channels=1)
    first, second, other = draw_fixed(a, 50), draw_fixed(b, 50), draw_fixed(a, 50, seed=1)
    assert torch.equal(first.support, second.support)
    assert torch.equal(first.query, second.query)
    assert not torch.equal(first.support, other.support)


def test_fewer_fixed_episodes_are_the_first_of_more(make_set):
    data = make_set([20] * 8)
    assert torch.equal(draw_fixed(data, 1200).query[:30], draw_fixed(data, 30).query)
    assert torch.equal(draw_fixed(data, 1200).query[1000:], draw_fixed(data, 1900).query[1000:1200])


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"seed": -1}])
def test_fixed_episodes_refuse(make_set, wrong):
    with pytest.raises(UserError, match="at least one episode and a seed"):
        draw_fixed(make_set(UNEQUAL), **{"episodes": 3, **wrong})


def test_sampler_draws_afresh_and_repeats_with_its_generator(make_set):
    data = make_set([20] * 8)
    sampler = EpisodeSampler(data, way=3, shot=2, queries=4, generator=torch.Generator().manual_seed(3))
    first, second = sampler.sample(5), sampler.sample(5)
    assert not torch.equal(first.support, second.support)
    assert torch.equal(first.support, draw_sampled(data, 5, seed=3).support)


def test_gather_fetches_the_images_of_the_index(make_set):
    data = make_set(UNEQUAL)
    index = draw_fixed(data, 4)
    support, query = gather(data, index)
    assert support.shape == (4, 3, 2, 3, 8, 8)
    assert query.shape == (4, 3, 4, 3, 8, 8)
    assert torch.equal(support, data.images[index.support])
    assert torch.equal(query, data.images[index.query])


def test_index_slices_and_refuses_odd_shapes(make_set):
    index = draw_fixed(make_set(UNEQUAL), 10)
    assert torch.equal(index[2:5].query, index.query[2:5])
    with pytest.raises(UserError, match="must be shaped"):
        EpisodeIndex(index.classes, index.support[:5], index.query)


@pytest.mark.cuda
def test_sampling_gathering_and_augmenting_are_captured_in_a_cuda_graph(make_set):
    data = make_set(UNEQUAL).to("cuda")
    sampler = EpisodeSampler(data, way=3, shot=2, queries=4)
    config = AugmentConfig(crop_scale=(0.3, 1.0), pad=2, flip=True, brightness=0.4, contrast=0.4, saturation=0.4)

    def step():
        index = sampler.sample(6)
        return index, augment(gather(data, index)[0].flatten(0, 2), config)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index, images = step()
    seen = []
    for _ in range(3):
        graph.replay()
        assert (data.labels[index.query] == index.classes[..., None]).all()
        assert images.isfinite().all()
        seen.append(index.support.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def grouped(make_set):
    """Groups a (4 classes), b (3) and c (2), one class of b with too few images."""
    counts = [6, 6, 6, 6, 6, 6, 2, 6, 6]
    data = make_set(counts, size=4)
    names = tuple(f"{'aaaabbbcc'[i]}/{i}" for i in range(9))
    return ClassImages(data.images, data.counts, names).by_group()


def test_all_classes_of_a_fixed_episode_are_of_one_group(grouped):
    index = fixed_episodes(grouped, way=2, shot=1, queries=2, episodes=600, seed=0)
    groups = torch.tensor(grouped.groups)[index.classes]
    assert (groups == groups[:, :1]).all()
    assert torch.bincount(groups[:, 0]).min() > 150  # all groups alike
    drawn = torch.bincount(index.classes.flatten(), minlength=9).tolist()
    assert drawn[6] == 0
    assert all(n > 40 for c, n in enumerate(drawn) if c != 6)


def test_all_classes_of_a_sampled_episode_are_of_one_group(grouped):
    index = EpisodeSampler(grouped, way=2, shot=1, queries=2).sample(600)
    groups = torch.tensor(grouped.groups)[index.classes]
    assert (groups == groups[:, :1]).all()
    assert torch.bincount(groups[:, 0]).min() > 150
    assert (index.classes[:, 0] != index.classes[:, 1]).all()
    assert 6 not in index.classes


def test_small_groups_are_left_out_and_none_left_is_an_error(grouped):
    index = fixed_episodes(grouped, way=4, shot=1, queries=2, episodes=20, seed=0)
    assert index.classes.max() < 4
    with pytest.raises(UserError, match="the largest of 3 groups has 4"):
        fixed_episodes(grouped, way=5, shot=1, queries=2, episodes=1, seed=0)
    with pytest.raises(UserError, match="the largest of 3 groups has 4"):
        EpisodeSampler(grouped, way=5, shot=1, queries=2)


def test_groups_follow_the_classes(grouped, make_set):
    assert grouped.subset([0, 4, 8]).groups == (0, 1, 2)
    assert grouped.to("cpu").groups == grouped.groups
    with pytest.raises(UserError, match="no '/'"):
        make_set([2, 2]).by_group()
