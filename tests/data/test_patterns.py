"""Patterns: which fields ask and answer, drawn by weight, and never a view of a row as a negative of another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from omni2vec.data import patterns as module
from omni2vec.data.instruct import drawn
from omni2vec.data.mix import Feed
from omni2vec.data.patterns import Pattern, absent, checked, formed, lacking, possible, views
from omni2vec.data.relation import Relation
from omni2vec.data.shards import Shard, write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Blob, Clock, DataError, Event, Events, Example, Image, Item, Text
from omni2vec.train.objectives.infonce import InfoNCE

from .samples import everything, part, png

CLOCK = Clock(0, 0.0, 5)


def product_row(i: int = 0, **without: None) -> Example:
    """A record of four fields, less those that are named."""
    fields = {
        "image": Item((Image(Blob(b"picture %d" % i), 8, 8),), f"picture-{i}"),
        "title": Item.text(f"title {i}"),
        "description": Item((Text(f"text {i}"), Text("in two parts"))),
        "item": Item((Text(f"thing {i}"),), f"sku-{i}"),
    }
    kept = {name: item for name, item in fields.items() if name not in without}
    return Example(f"shop/{i}", "shop", "retrieval", Item(()), (), fields=kept)


def plain_row(i: int = 0) -> Example:
    """A question with a picture, three right answers of which one has a picture, two wrong ones."""
    picture = Image(Blob(b"asked %d" % i), 8, 8)
    shown = Image(Blob(b"answer %d" % i), 8, 8)
    return Example(
        f"ask/{i}",
        "ask",
        "vqa",
        Item((picture, Text(f"what is {i}?"))),
        (Item.text("one"), Item((shown, Text("two"))), Item.text("three")),
        (Item.text("wrong"), Item.text("very wrong")),
        known=("elsewhere",),
        instruction="Answer.",
        target_instruction="Represent.",
        answer="one",
        label="kind",
        scores={"label": (3.0, 2.0, 1.0, 0.5, 0.25)},
    )


def one(example: Example, form: str, draw: int = 0, **settings: object) -> Example:
    return formed(example, [Pattern(form, **settings)], 0, 5, draw)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("image", "expected QUERY -> TARGET"),
        ("image -> title -> item", "expected QUERY -> TARGET"),
        ("-> title", "nothing is in the query; name a field"),
        ("image -> ", "nothing is in the target; name a field"),
        ("image? -> title", "every field of the query has a '?'"),
        ("image -> title? + item?", "every field of the target has a '?'"),
        ("title -> title", "'title' is on both sides: the answer would be in the question"),
        ("image + title? -> title", "'title' is on both sides"),
        ("query -> query.image", "'query.image' is on both sides"),
        ("title + title -> image", "'title' is twice in the query"),
        ("image -> item + item.text", "'item.text' is twice in the target"),
        ("Image -> title", "'Image' is no field; expected a name of a-z, 0-9 and _"),
        ("query.colour -> title", "'query.colour' is no field; .* text, image, audio, video, events"),
        ("query. -> title", "'query.' is no field"),
        ("image ++ item -> title", "'' is no field"),
        ("image, item -> title", "'image, item' is no field"),
    ],
)
def test_a_form_that_is_none_says_which_part_is_wrong_and_what_was_expected(form: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        Pattern(form)
    assert repr(form) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop": 0.5}, "drop=0.5, but no field may be dropped; put a '\\?' behind one"),
        ({"drop": 1.0, "form": "image + title? -> item"}, "drop=1.0; expected a chance of 0 or more and below 1"),
        ({"weight": -1.0}, "weight=-1.0; expected a finite number"),
        ({"weight": math.nan}, "weight=nan"),
        (
            {"drop": 0.1, "form": "a -> b + " + " + ".join(f"c{i}?" for i in range(7))},
            "more than 6 fields of the target",
        ),
    ],
)
def test_settings_of_a_pattern_that_mean_nothing_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pattern(**{"form": "image -> title", **settings})  # type: ignore[arg-type]


def test_a_feed_refuses_weights_that_sum_to_nothing_and_a_form_that_stands_twice() -> None:
    with pytest.raises(ValueError, match="feed 'shop': the weights of its 2 patterns sum to nothing"):
        checked([Pattern("image -> title", weight=0), Pattern("title -> image", weight=0)], "shop")
    with pytest.raises(ValueError, match="feed 'shop': two patterns 'image->title', whose rows would have equal keys"):
        checked([Pattern("image->title"), Pattern("image -> title", task="other")], "shop")
    checked([Pattern("image -> title", weight=0), Pattern("title -> image")], "shop")


def test_query_and_target_are_the_parts_of_the_fields_in_their_order() -> None:
    row = product_row()
    seen = one(row, "title + image -> description + item")
    assert seen.query.parts == (*row.fields["title"].parts, *row.fields["image"].parts)
    assert [p.parts for p in seen.positives] == [(*row.fields["description"].parts, *row.fields["item"].parts)]
    assert seen.key == "shop/0#title+image->description+item"
    assert not seen.fields and not seen.negatives


def test_an_item_of_one_field_keeps_its_id_and_equal_compositions_are_equal_items() -> None:
    row = product_row()
    assert one(row, "item -> title").query.id == "sku-0"
    assert one(row, "item + image? -> title", draw=1).query.id != "sku-0"
    assert one(product_row(image=None), "item + image? -> title").query.id == "sku-0"
    composed = [one(row, form).query.id for form in ("image + item -> title", "image+item -> description")]
    assert composed[0] == composed[1]
    others = (one(row, "item + image -> title"), one(product_row(1), "image + item -> title"))
    assert composed[0] not in [e.query.id for e in others]


def test_the_fields_of_a_plain_row_are_its_query_its_target_and_their_kinds() -> None:
    row = plain_row()
    forms = (
        "query -> target",
        "target -> query",
        "query.image -> query.text",
        "query.text + target.image -> target.text",
    )
    able = [Pattern(f) for f in (*forms, "query.audio -> target", "title -> target", "query -> target.events")]
    assert possible(row, able) == (0, 1, 2, 3)
    picture, question = row.query.parts
    seen = one(row, "query.image -> query.text")
    assert (seen.query, seen.positives) == (
        Item((picture,), Item((picture,)).id),
        (Item((question,), Item((question,)).id),),
    )
    # Only the second answer has a picture and a text.
    seen = one(row, "query.text + target.image -> target.text")
    assert (seen.query.parts[1], seen.positives[0].parts) == (row.positives[1].parts[0], (Text("two"),))


def test_a_field_of_one_kind_is_the_field_itself_with_its_own_id() -> None:
    row = replace(plain_row(), query=Item((Text("a question"),), "question-1"))
    assert one(row, "query.text -> target").query.id == "question-1"


def test_every_kind_of_part_is_a_field_of_its_own() -> None:
    forms = ("query.events -> query.text", "query.image -> target.video", "query.text -> target.image")
    assert possible(everything(), [Pattern(f) for f in forms]) == (0, 1, 2)
    assert isinstance(one(everything(), forms[0]).query.parts[0], Events)
    person = Item((Events((Event("viewed", "a hat"),)),), "person-1")
    row = Example("k", "s", "retrieval", Item(()), (), fields={"user": person, "item": Item.text("a hat")})
    assert one(row, "user -> item").query == person


def test_the_pattern_from_query_to_target_is_the_row_without_patterns_but_for_its_key() -> None:
    row, feed = plain_row(), Feed(Shards("nowhere"), negatives=2)
    for draw in range(20):
        seen = drawn(one(row, "query -> target", draw), feed, CLOCK, draw)
        without = drawn(row, feed, CLOCK, draw)
        ids = [(e.query.id, [p.id for p in e.positives], [n.id for n in e.negatives]) for e in (seen, without)]
        assert ids[0] == ids[1]
        assert set(seen.known) == {*without.known, row.query.id}  # a query's own Item counts as known anyway
        assert (seen.key, seen.scores) == ("ask/0#query->target", without.scores)
        same = ("source", "task", "label", "instruction", "target_instruction", "answer")
        assert [getattr(seen, f) for f in same] == [getattr(without, f) for f in same]


def test_one_pattern_alone_gives_the_loss_of_infonce() -> None:
    rows = [plain_row(i) for i in range(6)]
    seen = [one(row, "query -> target") for row in rows]
    plain = [drawn(row, Feed(Shards("nowhere"), negatives=2), CLOCK, 0) for row in rows]
    assert _loss(seen) == _loss(plain) > 0


def test_negatives_scores_and_answer_stay_only_where_they_are_true() -> None:
    row = plain_row()
    to_target = one(row, "query.image -> target")
    assert (len(to_target.negatives), len(to_target.scores["label"]), to_target.answer) == (2, 3, "")
    assert (
        to_target.scores["label"][0] == (3.0, 2.0, 1.0)[[p.id for p in row.positives].index(to_target.positives[0].id)]
    )
    for form in ("query -> target.text", "target -> query", "query.image -> query.text"):
        seen = one(row, form)
        assert (seen.negatives, seen.scores) == ((), {})
        assert seen.answer == ("one" if form.startswith("query ->") else "")
    assert one(replace(product_row(), answer="said"), "image -> title").answer == "said"


def test_a_pattern_may_have_its_own_instructions_and_task() -> None:
    row = plain_row()
    seen = one(row, "target -> query", instruction="Which question?", target_instruction="", task="retrieval")
    assert (seen.instruction, seen.target_instruction, seen.task) == ("Which question?", "", "retrieval")
    kept = one(row, "target -> query")
    assert (kept.instruction, kept.target_instruction, kept.task) == ("Answer.", "Represent.", "vqa")


def test_patterns_are_drawn_by_their_weights_among_those_that_the_row_can_form() -> None:
    able = [
        Pattern("image -> title", weight=3, drop=0.0),
        Pattern("user -> item", weight=90),
        Pattern("title + description? -> item", weight=2, drop=0.9),
        Pattern("item -> image", weight=0),
        Pattern("description -> image", weight=1),
    ]
    rows = [product_row(i) for i in range(40)]
    found = Counter(views(row, able, "one", 5, draw) for row in rows for draw in range(150))
    expected = {(0,): 3000, (2,): 2000, (4,): 1000}
    assert set(found) == set(expected)
    chi = sum((found[k] - n) ** 2 / n for k, n in expected.items())
    assert chi < 13.8  # 0.1 % of a fair draw of three kinds is above


def test_all_possible_patterns_are_drawn_but_those_of_weight_zero() -> None:
    able = [
        Pattern("image -> title"),
        Pattern("user -> item"),
        Pattern("item -> image", weight=0),
        Pattern("item -> title"),
    ]
    assert views(product_row(), able, "all", 5, 0) == (0, 3)
    assert views(product_row(image=None, title=None), able, "all", 5, 0) == ()
    assert views(product_row(item=None, title=None), able, "one", 5, 0) == ()


def test_a_field_is_dropped_as_often_as_its_pattern_says_each_on_its_own() -> None:
    pattern = Pattern("image + title? -> item + description?", drop=0.25)
    rows, found = [product_row(i) for i in range(40)], Counter[tuple[bool, bool]]()
    for row, draw in product(rows, range(100)):
        seen = formed(row, [pattern], 0, 5, draw)
        found[len(seen.query.parts) == 2, len(seen.positives[0].parts) == 3] += 1
    expected = {
        (a, b): 4000 * (0.75 if a else 0.25) * (0.75 if b else 0.25) for a, b in product((True, False), repeat=2)
    }
    assert sum((found[k] - n) ** 2 / n for k, n in expected.items()) < 16.3  # 0.1 % of a fair draw of four kinds


def test_a_draw_is_a_pure_function_of_seed_draw_and_key() -> None:
    able = [Pattern("image + title? -> item", drop=0.5), Pattern("title -> item"), Pattern("image -> description")]

    def all_of(seed: int, rows: Sequence[Example]) -> list[object]:
        chosen = [(row, draw, v) for row in rows for draw in range(30) for v in views(row, able, "one", seed, draw)]
        return [formed(row, able, v, seed, draw) for row, draw, v in chosen]

    rows = [product_row(i) for i in range(3)]
    first, again, backwards = all_of(5, rows), all_of(5, rows), all_of(5, rows[::-1])
    assert first == again
    assert sorted(map(repr, first)) == sorted(map(repr, backwards))
    assert first != all_of(6, rows)
    renamed = [replace(row, source="other") for row in rows]  # the key alone counts
    assert [e.query for e in all_of(5, renamed)] == [e.query for e in first]  # type: ignore[attr-defined]


def test_known_are_all_that_any_view_of_the_row_may_ask_for() -> None:
    able = [
        Pattern("image -> title + description? + item?", drop=0.5),
        Pattern("title -> image"),
        Pattern("item -> image + title"),
        Pattern("user -> item"),
    ]
    row = product_row()
    asked = {e.positives[0].id for i, d in product(range(3), range(40)) for e in [formed(row, able, i, 5, d)]}
    assert len(asked) == 6  # title alone, with either, with both; image; image + title
    for i in range(3):
        known = formed(row, able, i, 5, 0).known
        assert asked | {item.id for item in row.fields.values()} <= set(known)
        assert len(known) == len(set(known))
    plain = one(plain_row(), "query.image -> target.text + query.text")
    pairs = {
        formed(plain_row(), [Pattern("query.image -> target.text + query.text")], 0, 5, d).positives[0].id
        for d in range(40)
    }
    assert len(pairs) == 3 and pairs <= set(plain.known)  # with whichever answer another draw takes
    assert {"elsewhere", *(p.id for p in plain_row().positives)} <= set(plain.known)


def test_views_of_one_row_in_a_batch_are_never_each_others_negatives() -> None:
    able = [Pattern("image -> title"), Pattern("title -> image"), Pattern("item + image -> title + description")]
    rows = [product_row(i) for i in range(5)]
    batch = [formed(row, able, v, 5, 0) for row in rows for v in views(row, able, "all", 5, 0)]
    assert len(batch) == 15
    relation = Relation.of(batch, ["shop"])
    for q in range(15):
        known = {tuple(i) for i in relation.known_id[relation.known_query == q].tolist()}
        docs = {tuple(i) for i in relation.doc_id[q // 3 * 3 : q // 3 * 3 + 3].tolist()}
        assert docs <= known and len(known) == 3
    # The loss by hand: the other views of a row are left out of its denominator, both ways.
    assert _loss(batch) == pytest.approx(_by_hand(15, lambda q, d: q // 3 == d // 3), rel=1e-12)
    alone = [replace(e, known=()) for e in batch]
    assert _loss(alone) != pytest.approx(_loss(batch), rel=1e-3)  # without `known` they would be negatives


def test_a_row_that_can_form_no_pattern_says_what_it_has() -> None:
    able = [Pattern("user -> item"), Pattern("image -> target"), Pattern("item -> image", weight=0)]
    row = replace(plain_row(), fields={"item": Item.text("x")}, positives=())
    assert possible(row, able) == ()
    assert lacking(row, able) == (
        "ask/0: cannot form 'user -> item', 'image -> target'; its fields are item (text), query (image, text); "
        "correct the row, or leave it out: Feed(missing='skip')"
    )
    with pytest.raises(DataError, match=r"ask/0: cannot form 'image -> target'; its fields are"):
        formed(row, able, 1, 5, 0)


def test_a_pattern_that_no_row_can_form_is_refused_when_a_source_is_opened() -> None:
    counts = {"image+title": 900, "title": 60, "image+item": 40, **{f"x{i}": 1 for i in range(5)}}
    able = [
        Pattern("image -> title"),
        Pattern("item -> image"),
    ]
    assert absent(counts, able, "shop") == 60 + 5
    assert absent({"query+target": 7}, [Pattern("query.image -> target")], "ask") == 0
    with pytest.raises(DataError) as error:
        absent(counts, [*able, Pattern("image + title? -> user")], "shop")
    assert str(error.value) == (
        "source 'shop': no row can form 'image + title? -> user'; its fields come as image+title (900 rows), title (60 "
        "rows), image+item (40 rows), x0 (1 row), x1 (1 row), x2 (1 row) and 2 more combinations: correct the form, "
        "or leave the pattern out"
    )
    assert absent(counts, [*able, Pattern("user -> item", weight=0)], "shop") == 65
    assert absent(None, able, "shop") is None and absent(counts, [], "shop") is None


def test_patterns_see_what_shards_hold_and_read_a_medium_only_for_part_of_a_mixed_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = part("image", png(6, 6))
    rows = [replace(product_row(i), fields={**product_row(i).fields, "image": Item((picture,))}) for i in range(2)]
    mixed = replace(plain_row(), query=Item((picture, Text("what?"))))
    (path,) = write_shards([*rows, mixed], tmp_path)
    shard = Shard(path)
    assert shard.index.fields == {"description+image+item+title": 2, "query+target": 1}
    read: list[Blob] = []
    monkeypatch.setattr(Blob, "read", lambda blob: read.append(blob) or blob.data or Path(blob.path).read_bytes())
    seen = [one(shard.example(i), "image + title -> item") for i in range(2)]
    assert [e.query.id for e in seen] == [one(row, "image + title -> item").query.id for row in rows] and not [
        b for b in read if b.path
    ]
    module._read_id.cache_clear()
    for _ in range(3):
        one(shard.example(2), "query.image -> target")
    assert len([b for b in read if b.path]) == 1


def test_equal_pictures_in_rows_with_other_texts_are_one_thing() -> None:
    rows = [replace(plain_row(), query=Item((Image(Blob(b"same"), 8, 8), Text(t)))) for t in ("who?", "where?")]
    ids = {one(row, "query.text -> query.image").positives[0].id for row in rows}
    assert ids == {Item((Image(Blob(b"same"), 8, 8),)).id}


def _vectors(count: int, seed: int) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal((count, 7))
    return torch.nn.functional.normalize(torch.from_numpy(drawn), dim=1)


def _loss(batch: Sequence[Example]) -> float:
    """InfoNCE of random vectors in float64, the same for batches of equal shape."""
    relation = Relation.of(batch, [batch[0].source])
    docs = len(relation.doc_id)
    result = InfoNCE(both=True).contrast(
        _vectors(len(batch), 1), _vectors(docs, 2), relation, torch.tensor([4.0], dtype=torch.float64), CLOCK
    )
    return float(result.sum / result.count)


def _by_hand(count: int, alike: object) -> float:
    logits = 4.0 * _vectors(count, 1) @ _vectors(count, 2).T
    own = torch.eye(count, dtype=torch.bool)
    same = torch.tensor([[alike(q, d) for d in range(count)] for q in range(count)])  # type: ignore[operator]
    seen = logits.masked_fill(same & ~own, -math.inf)
    rows, columns = (torch.logsumexp(seen, dim) - logits.diagonal() for dim in (1, 0))
    return float((rows + columns).mean() / 2)
