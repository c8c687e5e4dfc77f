"""The HTML page: complete in one file, safe, the same every time, and right about what is right."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from omni2vec.data.types import Audio, Blob, Event, Events, Image, Item, Text, Video
from omni2vec.eval import page
from omni2vec.eval.compare import compare
from omni2vec.eval.evaluate import evaluate
from omni2vec.eval.tasks.shards import tasks_from
from omni2vec.eval.thumbnails import CHARACTERS, SOUND_BYTES, views
from omni2vec.eval.types import Query, Task

VOID = {"meta", "img", "br", "path", "circle"}


class Reader(HTMLParser):
    """Every start tag with its attributes; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def drawn(bag, words, rows):
    tasks = tasks_from(rows)
    ours, base = evaluate(bag, tasks, name="bag"), evaluate(words, tasks, name="words")
    return tasks, ours, page.render(ours, tasks, [compare(ours, base)])


def test_the_page_needs_nothing_but_itself(drawn) -> None:
    for tag, attributes in Reader(drawn[2]).tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:image/webp;base64,", "data:audio/wav;base64,", "#")), (tag, value[:80])
    assert "http" not in re.sub(r"base64,[^\"]+", "", drawn[2])


def test_every_task_has_a_section_that_the_overview_links_to(drawn) -> None:
    tags = Reader(drawn[2]).tags
    links = {a["href"] for t, a in tags if t == "a"}
    assert links == {f"#{a['id']}" for t, a in tags if t == "section"}
    assert len(links) == len(drawn[0])


def test_results_marked_right_are_the_right_ones(drawn) -> None:
    tasks, report, text = drawn
    expected = 0
    for task, scored in zip(tasks, report.tasks, strict=True):
        if task.kind == "sts":
            continue
        for q in page.chosen(task, scored):
            shown = scored.ranking.top[q][: page.RESULTS]
            expected += sum(c in task.queries[q].right for c in shown)
            expected += min(scored.ranking.right_ranks[q]) > len(shown)
    assert text.count("<strong>✓ right</strong>") == expected > 20


def test_right_and_wrong_queries_are_shown_and_one_side_fills_up_the_other(drawn) -> None:
    for task, scored in zip(drawn[0], drawn[1].tasks, strict=True):
        if task.kind == "sts":
            continue
        rights = [min(scored.ranking.right_ranks[q]) == 1 for q in page.chosen(task, scored)]
        all_rights = [min(r) == 1 for r in scored.ranking.right_ranks]
        assert len(rights) == min(2 * page.SHOWN, len(all_rights))
        assert sum(rights) >= min(page.SHOWN, sum(all_rights))
        assert len(rights) - sum(rights) >= min(page.SHOWN, len(all_rights) - sum(all_rights))


def test_the_page_is_the_same_every_time(drawn) -> None:
    tasks, report, text = drawn
    assert page.render(report, tasks) == page.render(report, tasks)
    assert page.render(report, tasks) != text  # which also shows a base


def test_places_are_named_to_the_end_of_the_pool(drawn) -> None:
    by_name = {t.name: dict(page._places(t)) for t in drawn[1].tasks if t.kind != "sts"}
    assert set(by_name["colour"]) == {"first", "2nd to 4th"}
    assert set(by_name["captions"]) <= {"first", "2nd to 5th", "6th to 10th", "later"}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in by_name.values())
    assert page._span(2, 2) == "2nd"


def test_texts_cannot_become_markup(bag) -> None:
    evil = "<script>alert('red')</script>"
    items = {"a": Item.text(evil), "b": Item.text("b")}
    task = Task(evil, "retrieval", (Query(Item.text(evil), ("a",), key=evil),), items, instruction=evil, digest="d")
    report = evaluate(bag, [task], name=evil)
    text = page.render(replace(report, digest=evil), [task])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6


def test_shares_and_chance_are_written_beside_the_bar(drawn) -> None:
    _, report, text = drawn
    expected = [
        f"{100 * s.value:.1f}, 95% interval {100 * s.low:.1f} to {100 * s.high:.1f}, chance {100 * s.chance:.1f}"
        for s in (t.score for t in report.tasks)
    ]
    labels = [a["aria-label"] or "" for t, a in Reader(text).tags if a.get("role") == "img" and t == "div"]
    assert len(labels) == 1 + 2 * len(expected)  # overall; overview and section of each task
    assert all(sum(label.startswith(e) for label in labels) == 2 * expected.count(e) for e in expected)


def test_a_clip_stays_a_moving_picture(rows) -> None:
    clip = next(e for e in rows if e.source == "clips").positives[0]
    (view,) = views(clip, "here")
    assert view.picture.startswith("data:image/webp;base64,UklGR")
    assert view.note == "clip, 1.5 s"


def test_a_short_sound_can_be_played_and_a_long_or_unknown_one_is_named() -> None:
    heads = (b"RIFF", b"RIFF" + bytes(SOUND_BYTES), b"what is this")
    short, long, unknown = (views(Item((Audio(Blob(data), 2.0, 16000),)), "here")[0] for data in heads)
    assert short.sound == "data:audio/wav;base64,UklGRg=="
    assert long.sound == unknown.sound == ""
    assert short.note == long.note == unknown.note == "sound, 2.0 s at 16 kHz"


def test_a_medium_that_cannot_be_read_says_so_in_its_place() -> None:
    broken = [Image(Blob(b"not a picture"), 10, 10), Video(Blob(b"RIFF0000WEBPxx"), 10, 10, 4, 1.0)]
    for view in (views(Item((part,)), "task 't', s/0/3")[0] for part in broken):
        assert view.note.startswith("cannot be shown: task 't', s/0/3")


def test_long_texts_are_cut_and_behaviour_shows_its_end() -> None:
    assert len(views(Item.text("x" * 5000), "")[0].text) == CHARACTERS
    events = Events(tuple(Event("bought", f"book {i}") for i in range(20)), "shop")
    (view,) = views(Item((events, Text("which?"))), "")[:1]
    assert view.text.endswith("bought book 19") and "book 13" not in view.text
    assert view.note == "shop, the last of 20"
