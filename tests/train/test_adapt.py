"""The mixer's state: what is seen of each source, when it is settled, and which way the shares go."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Adaptive, Feed
from omni2vec.data.planned import Plan
from omni2vec.data.schedules import Ramp
from omni2vec.data.types import Limits
from omni2vec.train.adapt import Adapting, Seen
from omni2vec.train.gather import Group
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.resume import State
from omni2vec.train.stage import Stage, Validate
from omni2vec.train.step import Done

from ..data.test_loader import Letters, Toy

A, B = Toy("a", 200), Toy("b", 200)
VALIDATE = Validate((A, B))


def adapting(mix: Adaptive, steps: int = 40, seen: Seen | None = None) -> Adapting:
    feeds = (Feed(A), Feed(B, 3.0))
    stage = Stage("s", "model", feeds, steps=steps, batch=16, sub_batch=4, mix=mix, validate=VALIDATE)
    seen = seen or Seen()
    loader = Loader(
        [A, B], feeds, Letters(), Limits(), batch=16, sub_batch=4, seed=0, budget=1 << 20, mix=mix, steps=steps,
        told=seen.told,
    )  # fmt: skip
    return Adapting(stage, mix, loader, Group(), seen)  # type: ignore[arg-type]


def done(plan: Plan, known: set[int], finite: bool = True) -> Done:
    """A step after which the sources in `known` find their answers and the others do not."""
    torch.manual_seed(plan.step)
    query = F.normalize(torch.randn(len(plan.keys), 64), dim=-1)
    docs = F.normalize(torch.randn(len(plan.relation.owner), 64), dim=-1)
    right = torch.isin(plan.relation.query_source[plan.relation.owner], torch.tensor(sorted(known)))
    docs[right] = query[plan.relation.owner[right]]
    return Done(torch.cat([query, docs]), torch.tensor([20.0]), finite=finite)


def run(made: Adapting, steps: range, learned_at: int) -> dict[int, dict[str, float]]:
    """Source b has learned from step `learned_at` on; what was said at which step."""
    said = {}
    for t in steps:
        plan = made.loader.plan(t)
        if (shares := made.step(plan, done(plan, {1} if t >= learned_at else set()))) is not None:
            said[t] = shares
    return said


def test_shares_go_to_the_source_that_has_not_learned_at_the_last_moment_but_one() -> None:
    made = adapting(Adaptive(every=4, smooth=0.0))
    said = run(made, range(20), learned_at=3)
    assert list(said) == [2, 6, 10, 14, 18]
    assert said[2] == {"a": 0.25, "b": 0.75}  # both stand where they began
    assert said[10]["a"] > 0.5
    drawn = made.loader.order.drawn
    shares = [(x - y) / 64 for x, y in zip(drawn(16), drawn(12), strict=True)]
    assert shares == pytest.approx([said[10]["a"], said[10]["b"]], abs=0.1)


def test_need_is_the_loss_over_the_first_and_smoothed() -> None:
    made = adapting(Adaptive(every=4, smooth=0.5))
    run(made, range(3), learned_at=99)
    first = dict(made.seen.first)
    assert made.seen.need == {"a": 1.0, "b": 1.0}
    run(made, range(3, 7), learned_at=0)
    assert made.seen.first == first
    assert made.seen.need["b"] == pytest.approx(0.5, abs=0.02)
    assert made.seen.need["a"] == pytest.approx(1.0, abs=0.4)


def test_what_a_killed_run_has_seen_goes_on_from_any_step() -> None:
    mix = Adaptive(every=4)
    whole = adapting(mix)
    said = run(whole, range(20), learned_at=3)
    for cut in range(1, 20):
        first = adapting(mix)
        before = run(first, range(cut), learned_at=3)
        state = State.of(json.loads(json.dumps(asdict(State(step=cut, mixer=first.seen)))))
        second = adapting(mix, seen=state.mixer)
        assert before | run(second, range(cut, 20), learned_at=3) == said
        assert second.seen == whole.seen


def test_a_stage_is_told_nothing_for_blocks_behind_its_end() -> None:
    assert list(run(adapting(Adaptive(every=4), steps=9), range(9), learned_at=0)) == [2, 6]


def test_a_step_without_a_finite_loss_is_not_looked_at_and_the_block_is_settled_still() -> None:
    made = adapting(Adaptive(every=2))
    plan = made.loader.plan(0)
    assert made.step(plan, done(plan, set(), finite=False)) == {"a": 0.25, "b": 0.75}
    assert not made.seen.need


def test_shares_by_score_go_to_what_scores_worse() -> None:
    made = adapting(Adaptive(every=2, by="score", smooth=0.0))
    made.scored({"a": 0.9, "b": 0.2, "mean": 0.55})
    said = made.step(made.loader.plan(0), done(made.loader.plan(0), set()))
    assert made.seen.need == {"a": 0.1, "b": 0.8}
    assert said is not None
    assert said["b"] > 0.85


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mix": Adaptive(by="score")}, "need validate"),
        ({"mix": Adaptive(by="score"), "validate": Validate((Toy("c", 9),))}, "c are scored and a are fed"),
        ({"mix": Adaptive(), "feeds": (Feed(A, Ramp(1, 2)),)}, "a scheduled weight of 'a'"),
        ({"mix": Adaptive(), "objectives": {"default": (NextToken(),)}}, "need a contrastive objective"),
        ({"temperature": float("nan")}, "temperature above 0"),
    ],
)
def test_a_stage_whose_mix_has_nothing_to_go_by_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Stage("s", "model", **({"feeds": (Feed(A),), "steps": 9} | settings))  # type: ignore[arg-type]
