"""Which parts of a policy go together, and which of its parameters then act."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidsparse.errors import BadInputError
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Measure
from vidsparse.policies.few_heads import why_not_few_heads
from vidsparse.policies.judge import why_no_judge
from vidsparse.policies.token_masks import is_exact, why_not_exact

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


def check_numbers(policy: Policy) -> None:
    """Raise BadInputError for a number of the policy itself that is out of range."""
    if policy.density is not None and not 0 < policy.density <= 1:
        raise BadInputError(f"density must be in (0, 1], got {policy.density:g}")
    if policy.mean_density is not None and not 0 < policy.mean_density <= 1:
        raise BadInputError(f"mean_density must be in (0, 1], got {policy.mean_density:g}")
    if policy.density is not None and policy.mean_density is not None:
        raise BadInputError(
            f"density={policy.density:g} at full sparsity follows from "
            f"mean_density={policy.mean_density:g} of a whole run: give one of the two"
        )
    if not 0 <= policy.floor <= 1:
        raise BadInputError(f"floor must be in [0, 1], got {policy.floor:g}")
    if not 0 <= policy.rotate < 1:
        raise BadInputError(f"rotate must be in [0, 1), got {policy.rotate:g}")
    check_sizes(policy, "scoring_heads")
    if policy.min_similarity is not None and not -1 <= policy.min_similarity <= 1:
        raise BadInputError(f"min_similarity must be in [-1, 1], got {policy.min_similarity:g}")
    if policy.block is not None and (policy.block % 16 or not 16 <= policy.block <= 256):
        raise BadInputError(f"block must be a multiple of 16 from 16 to 256, got {policy.block}")
    keys = policy.key_block
    if keys is not None and (keys % 16 or not 16 <= keys <= 256):
        raise BadInputError(f"key_block must be a multiple of 16 from 16 to 256, got {keys}")


def check_fit(policy: Policy) -> None:
    """Raise BadInputError where parts do not go together: by what they declare, then their own."""
    takes_mean = policy.selector.tolerance_of_purse is not None
    given = policy.density if takes_mean else policy.any_density
    if given is not None and (instead := policy.in_place_of_density):
        raise BadInputError(f"this preset has no density: change its {instead}")
    for part in policy.parts:
        if problem := part.refuses(policy):
            raise BadInputError(problem)
    if policy.scoring_heads is not None and (problem := why_not_few_heads(policy)):
        raise BadInputError(problem)
    if policy.min_similarity is not None and (problem := why_no_judge(policy)):
        raise BadInputError(problem)
    exact = any(each.estimator.exact for each in policy.candidates) and policy.any_density is None
    if exact and (problem := why_not_exact(policy)):
        raise BadInputError(problem)
    estimator, selector = policy.estimator, policy.selector
    if estimator.measure is Measure.RANK and not selector.takes_ranks:
        raise BadInputError(
            f"the estimator {type(estimator).__name__} only ranks blocks within a head: choose "
            "selector top_k or threshold"
        )
    keeps_mask = selector.takes_masks and estimator.has_mask
    if policy.any_density is None and not selector.has_amount and not keeps_mask:
        raise BadInputError(
            "this preset only ranks blocks: give it a density or a mean_density in (0, 1]"
        )
    _check_orders(policy)


def _takes_unequal(policy: Policy) -> bool:
    """Whether all parts take blocks that are not of one size."""
    scorers = (each.estimator for each in policy.candidates)
    takers = (*scorers, policy.selector, policy.compensation)
    return all(each.takes_clusters for each in takers)


def _check_orders(policy: Policy) -> None:
    _check_alternatives(policy)
    anchored = policy.anchor != "none"
    if policy.order.makes_clusters and (anchored or not _takes_unequal(policy)):
        raise BadInputError(
            "a semantic order makes clusters, not equal blocks: use estimator pooled, "
            "value_aware or routing, anchor=none and compensation none or centroid"
        )
    if policy.key_block is not None and not _takes_unequal(policy):
        raise BadInputError(
            f"key_block={policy.key_block} cuts keys finer than queries: use estimator pooled, "
            "subblock, value_aware or routing, any selector but threshold, and compensation none "
            "or centroid"
        )
    if anchored and not policy.order.static:
        raise BadInputError(
            f"anchor={policy.anchor} keeps the blocks of the first frame, and the order moves keys "
            "by what they are: leave anchor=none"
        )
    if anchored and (order := policy.spreading_order) is not None:
        raise BadInputError(
            f"anchor={policy.anchor} keeps the blocks of the first frame, of which the order "
            f"{order} puts a token into nearly every block: leave anchor=none, or take an order "
            "that goes frame by frame"
        )


def _check_alternatives(policy: Policy) -> None:
    """Of orders that follow the data only those that prune can compete, and not as the first."""
    if policy.alternatives is None:
        return
    others = policy.alternatives.candidates
    if not policy.order.static or not all(e.order.static or e.order.prunes for e in others):
        raise BadInputError(
            "heads choose among static orders: one that follows the data cannot compete"
        )
    for each in others:
        if not each.order.prunes:
            continue
        if each.density is None or not each.estimator.of_pruned or not policy.selector.takes_masks:
            raise BadInputError(
                "an alternative that keeps some tokens for all takes a density of its own, "
                "estimator kept, and selector=threshold"
            )
        if policy.compensation.compensates:
            raise BadInputError(
                "an alternative that keeps some tokens for all takes no compensation: the others "
                "copy an output"
            )


def idle(policy: Policy) -> dict[str, str]:
    """Parameters of a policy and its parts that do nothing as the others stand, and why."""
    found: dict[str, str] = {}
    for part in policy.parts:
        found |= part.idle(policy.any_density)
    if policy.alternatives is not None:
        found |= policy.alternatives.idle()
    if instead := policy.in_place_of_density:
        found["density"] = f"its {instead} says how much is kept"
        if policy.selector.tolerance_of_purse is None:
            found["mean_density"] = found["density"]
    own = "the clusters of a semantic order are of sizes of their own"
    by_key_block = policy.order.clusters_keys or policy.key_block is not None
    read = policy.order.counts_blocks or policy.order.fills_tiles
    if policy.order.clusters_queries and by_key_block and not read:
        found["block"] = own
    if policy.order.clusters_keys:
        found["key_block"] = own
    if policy.selector.in_place_of_density:
        found["floor"] = "the error is measured of a whole layer, whatever a row keeps"
    if is_exact(policy):
        found["floor"] = "with masks=token every row keeps what the rule says"
    return found


def fixed(policy: Policy) -> frozenset[str]:
    """Parameters of a policy that can be but one thing beside its parts."""
    spreads = not policy.order.static or policy.spreading_order is not None
    alone = {"anchor"} if spreads else set[str]()
    alone |= set[str]() if why_not_few_heads(policy) is None else {"scoring_heads"}
    alone |= set[str]() if why_no_judge(policy) is None else {"min_similarity"}
    alone |= set[str]() if why_not_exact(policy) is None else {"masks"}
    alone |= {"rotate"} if is_exact(policy) else set[str]()
    alone |= set[str]() if _takes_unequal(policy) else {"key_block"}
    return frozenset(alone).union(*(part.fixed for part in policy.parts))
