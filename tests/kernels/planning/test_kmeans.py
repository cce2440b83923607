"""k-means: one iteration by hand, and what must hold for any."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.kmeans import kmeans

IMPLS = ["triton", "reference"]


def seeded():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("seq", "clusters"), [(70, 7), (33, 40), (130, 1), (16, 16)])
def test_every_iteration_assigns_to_the_nearest_and_moves_to_the_mean(device, impl, seq, clusters):
    x = torch.randn(2, seq, 2, 24, device=device).transpose(1, 2)
    start = torch.randn(2, 2, clusters, 24, device=device)
    got = kmeans(x, clusters, iterations=2, centroids=start, impl=impl)
    centroids, labels = start.double(), torch.zeros(0)
    for _ in range(2):
        labels = torch.cdist(x.double(), centroids).argmin(dim=-1)
        moved = centroids.clone()
        for c in range(clusters):
            member = (labels == c)[..., None]
            mean = (x.double() * member).sum(dim=2) / member.sum(dim=2).clamp(min=1)
            moved[:, :, c] = torch.where(member.sum(dim=2) > 0, mean, centroids[:, :, c])
        centroids = moved
    assert torch.equal(got.labels.long(), labels)
    torch.testing.assert_close(got.centroids.double(), centroids, atol=1e-5, rtol=1e-5)
    counts = torch.nn.functional.one_hot(labels, clusters).sum(dim=2)
    assert torch.equal(got.sizes.long(), counts)
    sorted_labels = got.labels.gather(-1, got.order.long())
    assert torch.equal(sorted_labels, got.labels.sort(dim=-1).values)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_cluster_keeps_its_centroid(device, impl):
    x = torch.zeros(1, 1, 20, 16, device=device)
    start = torch.stack([torch.zeros(16), torch.full((16,), 9.0)])[None, None].to(device)
    got = kmeans(x, 2, iterations=3, centroids=start, impl=impl)
    assert got.sizes.tolist() == [[[20, 0]]]
    assert torch.equal(got.centroids, start)


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lower_index(device, impl):
    x = torch.ones(1, 1, 20, 16, device=device)
    start = torch.ones(1, 1, 70, 16, device=device)  # also between tiles of centroids
    assert kmeans(x, 70, iterations=1, centroids=start, impl=impl).labels.max() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_separated_clouds_are_found(device, impl):
    clouds = torch.arange(4).repeat_interleave(30)
    x = (100.0 * clouds[:, None] + torch.randn(120, 16))[None, None].to(device)
    start = (100.0 * torch.arange(4.0)[:, None] + 10).expand(4, 16)[None, None].to(device)
    got = kmeans(x, 4, iterations=2, centroids=start, impl=impl)
    assert torch.equal(got.labels[0, 0].cpu(), clouds.int())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_seed_repeats_and_a_warm_start_goes_on(device, impl):
    x = torch.randn(1, 2, 90, 16, device=device)
    first = kmeans(x, 6, iterations=4, generator=seeded(), impl=impl)
    again = kmeans(x, 6, iterations=4, generator=seeded(), impl=impl)
    assert torch.equal(first.labels, again.labels)
    half = kmeans(x, 6, iterations=2, generator=seeded(), impl=impl)
    rest = kmeans(x, 6, iterations=2, centroids=half.centroids, impl=impl)
    assert torch.equal(rest.labels, first.labels)


def test_more_clusters_than_tokens_is_allowed(device):
    got = kmeans(torch.randn(1, 1, 5, 16, device=device), 9, iterations=1)
    assert int(got.sizes.sum()) == 5


def test_numbers_out_of_range_are_refused():
    x = torch.zeros(1, 1, 5, 16)
    with pytest.raises(BadInputError, match="clusters must be from 1 to 4096, got 0"):
        kmeans(x, 0, iterations=1)
    with pytest.raises(BadInputError, match="iterations must be at least 1, got 0"):
        kmeans(x, 2, iterations=0)
    with pytest.raises(BadInputError, match="multiple_of must be at least 1, got 0"):
        kmeans(x, 2, iterations=1, multiple_of=0)
    with pytest.raises(BadInputError, match=r"centroids must be \(1, 1, 2, 16\)"):
        kmeans(x, 2, iterations=1, centroids=torch.zeros(1, 1, 3, 16))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("worth", [float("nan"), float("inf"), -float("inf")])
def test_tokens_that_are_no_number_go_where_zeros_would(device, impl, worth):
    x = torch.randn(1, 2, 70, 16, device=device)
    start = torch.randn(1, 2, 40, 16, device=device)
    at = torch.tensor([3, 40, 69])
    x[:, :, at] = 0.0
    expected = kmeans(x, 40, iterations=2, centroids=start, impl=impl)
    x[:, :, at] = worth
    got = kmeans(x, 40, iterations=2, centroids=start, finite=True, impl=impl)
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.centroids, expected.centroids)
