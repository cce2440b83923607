"""What the kernel reports of each block it visits."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case

ENGINES = ["triton", "cpu", "reference"] + ["native"] * (not torch.cuda.is_available())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("empty", [False, True])
def test_margins_equal_a_walk_over_the_lists(oracle, device, engine, empty):
    q, k, v = oracle.qkv(2, 2, 70, 90, 16, device=device)
    plan = oracle.plan(1, 2, 70, 90, 32, 16, empty=empty, device=device)
    seen = attention(q, k, v, plan, scale=0.4, engine=engine, observe=True)
    out, _ = oracle.attention(q, k, v, plan, scale=0.4)
    oracle.assert_as_exact(seen.out, out, torch.float32, times=30)
    for b in range(2):
        for h in range(2):
            rows = oracle.block_tokens(70, 32, None, b, h)
            columns = oracle.block_tokens(90, 16, None, b, h)
            for m, block in enumerate(rows):
                running = torch.full((len(block),), -math.inf, dtype=torch.float64, device=device)
                for n, j in enumerate(oracle.key_blocks(plan, b, h, m)):
                    margin = float(seen.margin[b, h, m, n])
                    scores = q[b, h, block].double() @ k[b, h, columns[j]].double().T * 0.4
                    lead = float((scores.amax(dim=-1) - running).max())
                    assert margin == pytest.approx(lead, abs=1e-5)
                    running = running.maximum(scores.amax(dim=-1))


def test_larger_or_unequal_blocks_are_refused(oracle):
    q, k, v = oracle.qkv(1, 1, 300, 300, 16)
    with pytest.raises(BadInputError, match="at most 128 tokens, got 256 x 16"):
        attention(q, k, v, oracle.plan(1, 1, 300, 300, 256, 16), observe=True)
    with pytest.raises(BadInputError, match="observing needs equal blocks"):
        attention(q, k, v, oracle.plan(1, 1, 300, 300, 16, 16, q_blocks=4), observe=True)


@pytest.mark.parametrize("engine", ["flash", "flex", "xformers"])
def test_an_engine_that_cannot_observe_is_refused_and_names_those_that_can(oracle, engine):
    q, k, v = oracle.qkv(1, 1, 40, 40, 16)
    with pytest.raises(BadInputError, match=r"does not report .*auto, triton, native, cpu, refer"):
        attention(q, k, v, oracle.plan(1, 1, 40, 40, 16, 16), engine=engine, observe=True)


def test_the_engine_that_ran_is_counted_once_a_call(oracle, cpu_engine):
    q, k, v = oracle.qkv(1, 1, 40, 40, 16)
    plan = oracle.plan(1, 1, 40, 40, 16, 16)
    ran = Counter()
    attention(q, k, v, plan, ran=ran)
    attention(q, k, v, plan, ran=ran, return_lse=True)
    attention(q, k, v, plan, ran=ran, observe=True)
    attention(q, k, v, plan, ran=ran, observe=True, engine="reference")
    assert ran == {cpu_engine: 3, "reference": 1}


def test_an_engine_is_resolved_once_a_call(oracle, monkeypatch):
    q, k, v = oracle.qkv(1, 1, 40, 40, 16)
    plan = oracle.plan(1, 1, 40, 40, 16, 16)
    made = []
    case = Case.of
    monkeypatch.setattr(Case, "of", lambda *args: made.append(1) or case(*args))
    asked: list[dict[str, Any]] = [{}, {"engine": "reference"}, {"observe": True}]
    for arguments in asked:
        made.clear()
        attention(q, k, v, plan, **arguments)
        assert len(made) == 1
