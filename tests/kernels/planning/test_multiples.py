"""Clusters of sizes that fill tiles: by hand, by a loop over tokens, and what must hold for any."""

import pytest
import torch

from vidsparse.kernels.planning.kmeans import kmeans
from vidsparse.kernels.planning.multiples import FEW, ROUNDS, to_multiples
from vidsparse.kernels.planning.permute import order_by_label

IMPLS = ["triton", "reference"]
NONE = float("-inf")


def moved(scores, labels, block):
    """The rule, a token at a time, for one head: a table of scores ``(seq, clusters)``."""
    labels, clusters = list(labels), len(scores[0])
    for _ in range(ROUNDS):
        sizes = [labels.count(c) for c in range(clusters)]
        few = FEW[0] * block // FEW[1]
        takes = {c: block - n % block for c, n in enumerate(sizes) if n % block > few}
        wish = {}
        for c, n in enumerate(sizes):
            if n % block <= few and takes:
                costs = []
                for token, label in enumerate(labels):
                    if label == c:
                        to = max(takes, key=lambda t: (scores[token][t], -t))
                        costs.append((max(scores[token][c] - scores[token][to], 0), token, to))
                wish |= {token: to for _, token, to in sorted(costs)[: n % block]}
        for token in sorted(wish):
            if takes[wish[token]]:
                takes[wish[token]] -= 1
                labels[token] = wish[token]
    return labels


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("seq", "clusters", "block"), [(300, 9, 32), (531, 5, 16), (40, 1, 16), (700, 3, 64)]
)
def test_tokens_go_where_a_loop_over_them_has_them_go(device, impl, seq, clusters, block):
    table = torch.randint(-20, 20, (2, 3, seq, clusters), device=device).float()  # with ties
    scores, labels = table.max(dim=-1)
    first = [True]

    def nearest(some):
        best, at = table.masked_fill(~some.clusters[..., None, :], NONE).max(dim=-1)
        sizes = torch.nn.functional.one_hot(labels, clusters).sum(dim=2)
        if first:  # who belongs to a cluster with a surplus, and no other
            few = (sizes % block > 0) & (sizes % block <= FEW[0] * block // FEW[1])
            assert torch.equal(some.tokens, few.gather(-1, labels))
            first.pop()
        return torch.where(some.tokens, at, 10**6).int(), best

    got = to_multiples(labels.int(), scores.clone(), clusters, block, nearest, impl=impl)
    for b in range(2):
        for h in range(3):
            expected = moved(table[b, h].tolist(), labels[b, h].tolist(), block)
            assert got[b, h].tolist() == expected


@pytest.mark.parametrize("impl", IMPLS)
def test_a_surplus_goes_where_room_is_and_the_least_attached_go(device, impl):
    # 18 tokens of cluster 0, two more than a block; 13 of cluster 1, three less
    labels = torch.tensor([0] * 18 + [1] * 13, dtype=torch.int32, device=device)[None, None]
    scores = torch.arange(31.0, device=device)[None, None] % 18
    best = torch.zeros(1, 1, 31, device=device)

    def nearest(some):
        assert not some.clusters[..., 0].any()
        return torch.ones_like(labels), best

    got = to_multiples(labels.clone(), scores.clone(), 2, 16, nearest, impl=impl)
    assert got[0, 0].tolist() == [1, 1] + [0] * 16 + [1] * 13


def kept(before, after):
    """The share of tokens that stand with most of those they stood with."""
    table = torch.zeros(int(before.max()) + 1, int(after.max()) + 1)
    table.index_put_((before.long(), after.long()), torch.ones(len(before)), accumulate=True)
    return float(table.amax(dim=1).sum()) / len(before)


@pytest.mark.parametrize("impl", IMPLS)
def test_clusters_waste_less_and_those_that_waste_nothing_come_first(device, impl):
    x = torch.randn(1, 2, 900, 16, device=device)
    start = x[:, :, :18]
    before = kmeans(x, 18, iterations=3, centroids=start, impl=impl)
    after = kmeans(x, 18, iterations=3, centroids=start, multiple_of=32, impl=impl)

    def waste(clusters):
        return int((-clusters.sizes % 32).sum())

    assert waste(after) < waste(before) / 2
    for h in range(2):
        assert kept(before.labels[0, h].cpu(), after.labels[0, h].cpu()) > 0.85
        ragged = (after.sizes[0, h] % 32 > 0).tolist()
        assert ragged == sorted(ragged)
    order, offsets = order_by_label(after.labels, 18, impl=impl)
    assert torch.equal(after.order, order)
    assert torch.equal(after.offsets, offsets)
    own = x.gather(2, after.order.long()[..., None].expand_as(x))
    first, end = after.offsets[0, 0, :2].tolist()
    torch.testing.assert_close(after.centroids[0, 0, 0], own[0, 0, first:end].mean(dim=0))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cluster_without_tokens_keeps_its_centroid_under_its_new_number(device, impl):
    x = torch.cat([torch.zeros(20, 16), torch.ones(32, 16)])[None, None].to(device)
    start = torch.stack([torch.full((16,), v) for v in (0.0, 9.0, 1.0)])[None, None].to(device)
    got = kmeans(x, 3, iterations=1, centroids=start, multiple_of=16, impl=impl)
    # 4 tokens more than 16 have nowhere to go: a cluster of 16s has no room
    assert got.sizes.tolist() == [[[0, 32, 20]]]
    assert got.centroids[0, 0, :, 0].tolist() == [9.0, 1.0, 0.0]


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_no_number_goes_where_zeros_would(device, impl):
    x = torch.randn(1, 1, 400, 16, device=device)
    start = x[:, :, :10].clone()
    x[:, :, ::7] = 0.0
    of_zeros = kmeans(x, 10, iterations=2, centroids=start, multiple_of=16, impl=impl)
    x[:, :, ::7] = float("nan")
    got = kmeans(x, 10, iterations=2, centroids=start, finite=True, multiple_of=16, impl=impl)
    assert torch.equal(got.labels, of_zeros.labels)
