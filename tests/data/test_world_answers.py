"""The synthetic world's answers, derived anew: from pixels, from samples of sound, from the words of a sentence."""

from __future__ import annotations

import re
import wave
from collections import Counter
from io import BytesIO
from itertools import product

import numpy as np
import PIL.Image
import pytest
from omni2vec.data.types import Audio, Events, Example, Image, Item, Text, Video
from omni2vec.data.world import examples
from omni2vec.data.world.pages import library
from omni2vec.data.world.vocabulary import COLOURS, MOVES, NUMBERS, PLURALS, SHAPES, SYNONYMS

PALETTE = {name: tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for name, code in COLOURS.items()}
PLAIN = {other: word for word, other in SYNONYMS.items()}  # "large" -> "big"
SINGULAR = {p: s for s, p in PLURALS.items()}
FLIPPED = {"below": "above", "right of": "left of", "below it": "above", "to its right": "left of"}


def pixels(part: object) -> np.ndarray:
    assert isinstance(part, Image | Video)
    return np.asarray(PIL.Image.open(BytesIO(part.blob.data)).convert("RGB"))


def colours(picture: np.ndarray) -> list[str]:
    """The colours that show as plain areas, the largest first."""
    counts = {name: int((picture == rgb).all(-1).sum()) for name, rgb in PALETTE.items()}
    return [name for name, n in sorted(counts.items(), key=lambda pair: -pair[1]) if n > 0]


def cells(picture: np.ndarray) -> dict[str, str]:
    """Of a scene on the 3 x 3 grid: name of each cell that is not empty -> its colour."""
    rows, columns = ("top", "middle", "bottom"), ("left", "middle", "right")
    third = len(picture) // 3
    found = {}
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        seen = colours(picture[i * third + 6 : (i + 1) * third - 6, j * third + 6 : (j + 1) * third - 6])
        if seen:
            found["centre" if row == column else f"{row} {column}"] = seen[0]
    return found


def facts(sentence: str) -> tuple[object, ...]:
    """What a caption says, free of its voice and form: (count, thing), or (relation, thing, thing)."""
    words = [PLAIN.get(w, w) for w in sentence.replace("single", "one").split()]
    plain = " ".join(SINGULAR.get(w, w) for w in words)
    things = [tuple(m) for m in re.findall(r"(big|small) (\w+) (\w+) (\w+)", plain)]
    if len(things) == 1:
        return next(NUMBERS.index(w) + 1 for w in words if w in NUMBERS), things[0]
    relation = re.search(r"below it|to its right|above|below|left of|right of", plain)
    assert relation is not None
    said = relation.group()
    if said in ("below", "right of"):
        things.reverse()
    return FLIPPED.get(said, said), *things


def question(example: Example) -> str:
    return next(p.text for p in example.query.parts if isinstance(p, Text))


def test_counts_are_those_of_the_cells_that_are_not_empty() -> None:
    for e in examples("counting", "test", 60):
        assert e.answer == NUMBERS[len(cells(pixels(e.query.parts[0]))) - 1]


def test_a_class_is_the_colour_of_all_that_is_on_the_picture() -> None:
    for e in examples("classes", "test", 60):
        assert {e.label.split()[0]} == set(cells(pixels(e.query.parts[0])).values())
        assert e.label == e.answer == e.positives[0].parts[0].text  # type: ignore[union-attr]


def test_questions_of_colour_and_shape_are_answered_as_the_pixels_say() -> None:
    asked = Counter[str]()
    for e in examples("vqa", "test", 200):
        picture, text = pixels(e.query.parts[0]), question(e)
        if re.fullmatch(r"what colour (is it|are they)\?", text):
            assert [e.answer] == colours(picture)
            asked["group"] += 1
        elif match := re.search(r"what colour is the shape in the (upper|lower|left|right) half", text):
            upper, left = np.arange(96)[:, None] < 48, np.arange(96)[None] < 48
            halves = {"upper": upper, "lower": ~upper, "left": left, "right": ~left}
            area = np.broadcast_to(halves[match[1]], (96, 96))
            assert e.answer == colours(np.where(area[..., None], picture, 0))[0]
            asked["half"] += 1
        elif match := re.search(r"what shape is (\w+)\?", text):
            assert (match[1] == "it" or match[1] in colours(picture)) and e.answer in SHAPES
            asked["shape"] += 1
    assert min(asked.values()) >= 10 and len(asked) == 3


def test_places_are_those_where_the_pixels_show_the_colour() -> None:
    asked = 0
    for e in examples("places", "test", 60):
        if match := re.search(r"where is the (\w+) shape", question(e)):
            assert cells(pixels(e.query.parts[0]))[e.answer] == match[1]
            asked += 1
    assert asked >= 20


def test_yes_and_no_are_what_the_pixels_say() -> None:
    asked = Counter[str]()
    for e in examples("yes_no", "test", 200):
        seen, text = cells(pixels(e.query.parts[0])), question(e)
        if match := re.search(r"(?:is it|are they) (\w+)\?", text):
            if match[1] in COLOURS:
                assert (e.answer == "yes") == (match[1] in seen.values())
                asked["colour"] += 1
        elif "only one" in text or "more than one" in text:
            assert (e.answer == "yes") == ((len(seen) == 1) == ("only one" in text))
            asked["count"] += 1
    assert min(asked.values()) >= 20 and len(asked) == 2


def test_a_caption_names_the_colours_of_its_picture_and_where_they_stand() -> None:
    for e in examples("caption_to_image", "test", 100):
        picture, said = pixels(e.positives[0].parts[0]), facts(question(e))
        if isinstance(said[0], int):
            seen = cells(picture)
            assert (len(seen), set(seen.values())) == (said[0], {said[1][2]})  # type: ignore[index]
            continue
        first, second = (np.argwhere((picture == PALETTE[thing[2]]).all(-1)).mean(0) for thing in said[1:])  # type: ignore[index]
        down, right = second - first
        assert (said[0] == "above") == (abs(down) > abs(right)) and max(down, right) > 30


def test_the_right_region_shows_the_colour_that_the_words_mean_and_its_neighbours_do_not_fill_it() -> None:
    by_place = 0
    for e in examples("grounding", "test", 60):
        region, text = pixels(e.positives[0].parts[0]), question(e)
        if "shape at the" in text:
            by_place += 1
            assert cells(pixels(e.query.parts[0]))[text.removeprefix("the shape at the ")] == colours(region)[0]
        else:
            assert text.split()[3] == colours(region)[0] and e.answer.endswith(text.removeprefix("the"))
        assert cells(pixels(e.query.parts[0]))[e.answer.split(",")[0]] == colours(region)[0]
        assert region.shape == (48, 48, 3)
    assert 5 <= by_place <= 30


def test_an_edit_changes_what_it_names_and_nothing_else() -> None:
    kinds = Counter[str]()
    for e in examples("composed", "test", 60):
        before, after = (pixels(i.parts[0]) for i in (e.query, e.positives[0]))
        old, new = set(colours(before)), set(colours(after))
        words = question(e).split()
        recoloured = words[-1] in COLOURS
        kinds["colour" if recoloured else "other"] += 1
        if recoloured:
            assert words[-1] in new - old and len(old & new) == 1 and len(new) == 2
        else:
            assert old == new
        assert {thing[2] for thing in facts(e.answer)[1:]} == new  # type: ignore[index]
        changed = np.argwhere((before != after).any(-1))
        assert len(changed) and np.ptp(changed, axis=0).max() < 52  # one thing's place, not both
        originals = [n for n in e.negatives if (pixels(n.parts[0]) == before).all()]
        assert len(originals) == 1
    assert min(kinds.values()) >= 5


def test_a_clip_does_what_its_caption_says_and_keeps_its_frames() -> None:
    moved = Counter[str]()
    for e in examples("caption_to_clip", "test", 60):
        part, text = e.positives[0].parts[0], question(e)
        assert isinstance(part, Video)
        clip = PIL.Image.open(BytesIO(part.blob.data))
        frames = []
        for i in range(clip.n_frames):  # type: ignore[attr-defined]
            clip.seek(i)
            frames.append(np.asarray(clip.convert("RGB")))
        assert (len(frames), part.seconds, frames[0].shape) == (part.frames, 2.0, (part.height, part.width, 3))
        colour = next(c for c in COLOURS if f" {c} " in text)
        spots = [np.argwhere((f == PALETTE[colour]).all(-1)) for f in (frames[0], frames[-1], frames[2])]
        move = next(m for m in MOVES if text.endswith(m))
        moved[move] += 1
        if move == "blinks":
            assert len(spots[0]) and not len(spots[2])
            continue
        if move in ("grows", "shrinks"):
            assert (len(spots[1]) > 2 * len(spots[0])) == (move == "grows")
            assert (len(spots[0]) > 2 * len(spots[1])) == (move == "shrinks")
            continue
        (y0, x0), (y1, x1), (y2, _) = (s.mean(0) for s in spots)
        if move == "jumps":
            assert y0 - y2 > 20
        else:
            step = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (-1, 0), "moves down": (1, 0)}[move]
            assert (round((y1 - y0) / 33), round((x1 - x0) / 33)) == step
    assert len(moved) == len(MOVES)


def test_a_tune_has_as_many_tones_as_its_caption_says_at_its_pitch() -> None:
    for e in examples("sound_to_caption", "test", 40):
        part, words = e.query.parts[0], e.answer.replace(",", "").split()
        assert isinstance(part, Audio)
        with wave.open(BytesIO(part.blob.data)) as file:
            assert (file.getsampwidth(), file.getnchannels(), file.getframerate()) == (2, 1, part.rate)
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        assert len(sound) / part.rate == part.seconds
        count = next(NUMBERS.index(w) + 1 for w in words if w in NUMBERS)
        loud = np.abs(sound).reshape(-1)[: len(sound) // 80 * 80].reshape(-1, 80).max(1) > 0.08  # 10 ms each
        if "bell" not in words:  # a bell rings on into the next tone
            assert int((np.diff(loud.astype(int), prepend=0) == 1).sum()) == count
        assert abs(part.seconds - count * (0.32 if "slow" in words else 0.16)) < 0.16
        spectrum = np.abs(np.fft.rfft(sound[: part.rate // 12]))  # the first tone
        pitch = {"low": 165, "middle": 330, "high": 660}[next(w for w in words if w in ("low", "middle", "high"))]
        assert abs(np.argmax(spectrum) * 12 - pitch) <= 18


def test_similarity_is_five_ninths_less_for_each_fact_that_differs() -> None:
    scores = Counter[float]()
    for e in examples("sts", "test", 300):
        one, two = (facts(i.parts[0].text) for i in (e.query, e.positives[0]))  # type: ignore[union-attr]
        straight = sum(a != b for x, y in zip(one[1:], two[1:], strict=True) for a, b in zip(x, y, strict=True))  # type: ignore[call-overload]
        crossed = sum(a != b for x, y in zip(one[1:], two[:0:-1], strict=True) for a, b in zip(x, y, strict=True))  # type: ignore[call-overload]
        different = min(straight + (one[0] != two[0]), crossed + 1)
        assert e.scores["label"] == (round(5 * (9 - different) / 9, 3),)
        scores[e.scores["label"][0]] += 1
        assert bool(e.known) == (e.scores["label"][0] >= 4)
    assert len(scores) >= 8 and max(scores.values()) < 100


@pytest.mark.parametrize("task", ["image_to_caption", "caption_to_image", "paraphrase"])
def test_known_names_exactly_the_right_answers_of_a_pool_of_captions(task: str) -> None:
    """Brute force: every query against every candidate, compared by what the sentences say."""
    rows = list(examples(task, "test", 250))
    meaning: dict[str, tuple[object, ...]] = {}  # of the candidates
    for e in rows:
        own = question(e) if task == "caption_to_image" else ""
        for item in (*e.positives, *e.negatives):
            meaning[item.id] = facts(own or item.parts[0].text)  # type: ignore[union-attr]
    several = 0
    for e in rows:
        said = facts(e.answer or question(e))
        right = {i for i, m in meaning.items() if m == said and i != e.query.id}
        assert right == set(e.known) & set(meaning) - {e.query.id}
        several += len(right) > 1
    assert task == "caption_to_image" or several  # a row whose right answer was drawn for another row too


def test_known_names_exactly_the_pages_that_a_query_is_true_of() -> None:
    entries = 0
    for e in examples("query_to_page", "test", 200):
        query = question(e)
        amounts = {(goods, int(n)) for n, goods in re.findall(r"(\d) (\w+)", query)}
        if amounts:
            layout = query.removeprefix("a ").split(" with ")[0]
            right = {p.id for p in library("test", 0) if p.layout == layout and amounts <= set(p.entries)}
        else:
            right = {p.id for p in library("test", 0) if query == f"the {p.season} {p.topic} {p.paper}".lower()}
            assert len(right) == 1
        assert set(e.known) == right and e.positives[0].id in right
        entries += bool(amounts)
    assert 40 < entries < 120


def test_questions_about_people_are_answered_as_their_history_says() -> None:
    asked = Counter[str]()
    for e in examples("behaviour", "test", 200):
        history = e.query.parts[0]
        assert isinstance(history, Events)
        times = [x.time for x in history.events]
        assert times == sorted(set(times))
        of = {a: [x.text for x in history.events if x.action == a] for a in ("viewed", "bought", "searched")}
        text = question(e)
        if "buy last" in text or "search for first" in text:
            assert e.answer == (of["bought"][-1] if "buy" in text else of["searched"][0])
        else:
            views = Counter(v.split()[0 if "colour" in text else 1] for v in of["viewed"])
            (best, n), *rest = views.most_common(2)
            assert e.answer == best and all(m < n for _, m in rest)
        asked[text] += 1
    assert len(asked) == 4


def test_equal_meanings_have_equal_ids_and_different_meanings_do_not() -> None:
    seen: dict[str, Item] = {}
    for e in examples("caption_to_image", "test", 300):
        said = repr(facts(question(e)))
        assert seen.setdefault(said, e.positives[0]).id == e.positives[0].id
    assert len({i.id for i in seen.values()}) == len(seen)
