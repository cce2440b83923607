"""Planning kernels at video sizes, against plain torch on the same GPU."""

import pytest
import torch

from vidsparse.kernels.plan import block_sizes
from vidsparse.kernels.planning.antidiagonal import antidiagonal_scores
from vidsparse.kernels.planning.block_scores import block_mass, block_value_error
from vidsparse.kernels.planning.density import density_of_lists
from vidsparse.kernels.planning.exact_mass import exact_mass, largest_shares, listed_mass
from vidsparse.kernels.planning.kmeans import kmeans
from vidsparse.kernels.planning.permute import order_by_label, permute_tokens, unpermute_tokens
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks, pool_ragged
from vidsparse.kernels.planning.runs import agreement, correct_runs
from vidsparse.kernels.planning.select import select_budget, select_top_k, select_top_p
from vidsparse.kernels.planning.stand_in_error import stand_in_error

pytestmark = pytest.mark.gpu
IMPLS = ("triton", "reference")


def tokens(seq, heads=4, head_dim=128):
    x = torch.randn(1, seq, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    return x.transpose(1, 2)


def test_pooling_and_scores():
    q, k, v = (tokens(9_001) for _ in range(3))
    sizes = part_sizes(9_001, 128, 4, "cuda")
    means = [[pool_blocks(x, 128, parts=4, impl=impl) for x in (q, k)] for impl in IMPLS]
    torch.testing.assert_close(means[0], means[1], atol=1e-5, rtol=1e-4)
    query, key = (x.bfloat16() for x in means[0])
    mass = [block_mass(query, key, sizes, sizes, scale=0.09, impl=impl) for impl in IMPLS]
    torch.testing.assert_close(mass[0], mass[1], atol=2e-3, rtol=1e-3)
    error = [block_value_error(mass[0], pool_blocks(v, 128), impl=impl) for impl in IMPLS]
    torch.testing.assert_close(error[0], error[1], atol=1e-5, rtol=1e-2)


def test_antidiagonal():
    q, k = tokens(4_000), tokens(4_100)
    got = [antidiagonal_scores(q, k, block=128, stride=8, scale=0.09, impl=i) for i in IMPLS]
    torch.testing.assert_close(got[0], got[1], atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("columns", [591, 1182, 4725])
def test_selection_of_long_rows_equals_sorting(columns):
    scores = torch.randn(1, 3, 70, columns, device="cuda").round(decimals=2)
    always = torch.rand(70, columns, device="cuda") < 0.02
    sizes = torch.full((columns,), 128.0, device="cuda")
    rules = (
        lambda impl: select_top_k(scores, columns // 4, always=always, impl=impl),
        lambda impl: select_top_p(scores.softmax(-1), 0.7, always=always, impl=impl),
        lambda impl: select_budget(scores, sizes[:70], sizes, 0.3, always=always, impl=impl),
    )
    for rule in rules:
        (count, index), (true_count, true_index) = (rule(impl) for impl in IMPLS)
        assert torch.equal(count, true_count)
        used = torch.arange(index.shape[-1], device="cuda") < count[..., None]
        assert torch.equal(index[used], true_index[used])


@pytest.mark.parametrize("agreed", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_exact_rows_correct_their_runs(agreed, head_dim):
    out = tokens(9_001, head_dim=head_dim)
    rows = (torch.arange(3, 8_998, 128, device="cuda") + 60).clamp(max=8_990)
    gain = tokens(1, head_dim=head_dim) + 0.5 * tokens(len(rows), head_dim=head_dim)
    exact = out.index_select(2, rows) + 0.1 * gain
    assert not agreed or 0.2 < agreement(gain.float()).min() < 1
    made = [out.clone() for _ in IMPLS]
    for each, impl in zip(made, IMPLS, strict=True):
        correct_runs(each, exact, rows, 128, start=3, length=8_995, agreed=agreed, impl=impl)
    assert (made[0] != out).any()
    torch.testing.assert_close(made[0], made[1], atol=2e-3, rtol=1e-2)
    assert torch.equal(made[0][:, :, :3], out[:, :, :3])
    assert torch.equal(made[0][:, :, 8_998:], out[:, :, 8_998:])


def test_density_of_lists():
    count = torch.randint(0, 71, (1, 4, 71), device="cuda", dtype=torch.int32)
    index = torch.rand(1, 4, 71, 71, device="cuda").argsort(-1).int()
    sizes = block_sizes(9_001, 128, "cuda")
    found = [
        density_of_lists(count, index, sizes, kv_block=128, q_len=9_001, kv_len=9_001, impl=impl)
        for impl in IMPLS
    ]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("clusters", [100, 500, 1000])
def test_kmeans(clusters):
    x = tokens(20_000, heads=2)
    start = x[:, :, :clusters].float()
    got, truth = (kmeans(x, clusters, iterations=1, centroids=start, impl=i) for i in IMPLS)
    # sums in another order can tip a token between two centroids that are equally near
    assert float((got.labels != truth.labels).float().mean()) < 1e-3
    torch.testing.assert_close(got.centroids, truth.centroids, atol=5e-2, rtol=5e-2)
    assert int(got.sizes.sum()) == 2 * 20_000
    again = kmeans(x, clusters, iterations=1, centroids=start)
    assert torch.equal(again.labels, got.labels)
    assert torch.equal(again.centroids, got.centroids)


@pytest.mark.parametrize(("clusters", "of"), [(160, 128), (300, 16), (7, 128)])
def test_kmeans_of_multiples(clusters, of):
    # small integers: scores are exact, and equal ones many
    x = torch.randint(-3, 4, (1, 20_001, 2, 128), device="cuda").bfloat16().transpose(1, 2)
    start = x[:, :, :clusters].float()
    got, truth = (
        kmeans(x, clusters, iterations=1, centroids=start, multiple_of=of, finite=True, impl=i)
        for i in IMPLS
    )
    assert torch.equal(got.labels, truth.labels)
    assert torch.equal(got.order, truth.order)
    plain = kmeans(x, clusters, iterations=1, centroids=start)
    wasted, before = (float((-each.sizes % of).sum()) for each in (got, plain))
    assert wasted < 0.7 * before


def test_sorting_and_permuting():
    labels = torch.randint(0, 500, (1, 4, 75_600), device="cuda", dtype=torch.int32)
    got, truth = (order_by_label(labels, 500, impl=impl) for impl in IMPLS)
    assert torch.equal(got[0], truth[0])
    assert torch.equal(got[1], truth[1])
    x = tokens(75_600)
    y = permute_tokens(x, got[0])
    assert torch.equal(y, permute_tokens(x, got[0], impl="reference"))
    assert torch.equal(unpermute_tokens(y, got[0], like=x), x)


def test_errors_of_stand_ins():
    query, k, v = tokens(40).float(), tokens(9_001), tokens(9_001)
    edges = torch.arange(0, 9_002, 100, dtype=torch.int32, device="cuda")
    edges[-1] = 9_001
    offsets = edges[None, None]
    key, value = (pool_ragged(x, offsets) for x in (k, v))
    got = [
        stand_in_error(query, k, v, key, value, offsets, scale=0.09, impl=impl) for impl in IMPLS
    ]
    torch.testing.assert_close(got[0], got[1], atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("block", [32, 80, 128])
def test_shares_from_exact_scores(block):
    q, k = tokens(3_001), tokens(2_900)
    sizes = {"q_block": block, "kv_block": block, "scale": 0.09}
    rows, columns = -(-3_001 // block), -(-2_900 // block)
    count = torch.randint(1, columns + 1, (1, 4, rows), device="cuda", dtype=torch.int32)
    index = torch.rand(1, 4, rows, columns, device="cuda").argsort(dim=-1).int()
    rules = (
        lambda impl: exact_mass(q, k, **sizes, impl=impl)[0],
        lambda impl: largest_shares(q, k, **sizes, impl=impl),
        lambda impl: listed_mass(q, k, count, index, **sizes, impl=impl),
    )
    for rule in rules:
        torch.testing.assert_close(*(rule(impl) for impl in IMPLS), atol=1e-5, rtol=1e-2)
