"""MovieLens (ml-latest-small; Harper and Konstan, 2015): what people rated -> the next film, questions about them.

People are split by a hash of their number, films by a hash of their title: rows of train show no person and no film
that the test asks about. Two ratings of one second are ordered by the film's number, for want of better.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..counter import choose
from ..tables import cells
from ..types import DataError, Event, Events, Example, Item, Part, Text, Where, digest
from .folder import Tasks, outside, write
from .person import Film, Habits, Rating, questions

DISTRACTORS = 20  # films beside the right one that a test row brings into the pool
POPULAR = 10  # ratings that such a film has, at least
FEWEST = 10  # events before the film that is asked for


@dataclass(frozen=True)
class MovieLens:
    """ratings.csv, movies.csv and, if there, tags.csv -> {split}/movielens_next, movielens_people, movielens_genres.

    test_share: of the people, and of the films for movielens_genres; 1.0 makes a test of all. events: the most recent
    ratings that a row shows. cuts: rows of movielens_next for each person of train, at different times.
    """

    root: str
    name: str = "movielens"
    test_share: float = 0.1
    events: int = 30
    cuts: int = 8

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())

    def tasks(self) -> Tasks:
        if not 0 < self.test_share <= 1 or self.events < FEWEST or self.cuts < 1:
            raise DataError(
                f"movielens: test_share={self.test_share}, events={self.events}, cuts={self.cuts}; expected a share in "
                f"(0, 1], {FEWEST} events or more, 1 cut or more"
            )
        root = Path(self.root)
        films = _films(root)
        tags = _tags(root, films)
        # By title: a few films stand in the list twice.
        asked = {number for number, film in films.items() if _unit("film", film.title) < self.test_share}
        people: dict[str, dict[str, list[Rating]]] = {"train": {}, "test": {}}
        for person, ratings in _people(root, films).items():
            split = "test" if _unit("person", person) < self.test_share else "train"
            shown = ratings if split == "test" else [r for r in ratings if r.film.number not in asked]
            if len(shown) > FEWEST:
                people[split][person] = shown
        habits = Habits.of(list((people["train"] or people["test"]).values()))
        everyone = [r for ratings_of in people.values() for ratings in ratings_of.values() for r in ratings]
        counts = Counter(r.film for r in everyone)
        popular = sorted((f for f, n in counts.items() if n >= POPULAR), key=lambda f: f.number)
        for split, ratings_of in people.items():
            yield split, "movielens_next", list(self._next(split, ratings_of, tags, popular))
            yield split, "movielens_people", list(self._asked(split, ratings_of, tags, habits))
            some = [film for n, film in films.items() if (n in asked) == (split == "test")]
            yield split, "movielens_genres", list(_genres(split, some))

    def _next(
        self, split: str, people: Mapping[str, list[Rating]], tags: Tags, popular: Sequence[Film]
    ) -> Iterator[Example]:
        """History -> the film rated next: in train at several times, in test the last one, with others for the pool."""
        films = {r.film for ratings in people.values() for r in ratings}
        items = {film: Item.text(film.about) for film in films.union(popular)}
        for person, ratings in people.items():
            last = len(ratings) - 1
            steps = min(self.cuts, last - FEWEST + 1) if split == "train" else 1
            seen = {r.film for r in ratings}
            unseen = [f for f in popular if f not in seen] if split != "train" else []
            others = tuple(items[unseen[i]] for i in choose(len(unseen), DISTRACTORS, "movielens", person))
            for cut in sorted({last - i * (last - FEWEST) // max(steps - 1, 1) for i in range(steps)}):
                target = items[ratings[cut].film]
                yield Example(
                    key=f"movielens_next/{split}/{person}-{cut}",
                    source="movielens_next",
                    task="retrieval",
                    query=Item(self._history(ratings[:cut], tags.get(person, []))),
                    positives=(target,),
                    negatives=others,
                    known=(target.id,),
                    instruction="Given what this person rated, find the film that they rate next.",
                    target_instruction="Represent the film.",
                )

    def _asked(self, split: str, people: Mapping[str, list[Rating]], tags: Tags, habits: Habits) -> Iterator[Example]:
        """History and question -> answer, computed from the very ratings that the row shows."""
        item = cache(Item.text)  # so that the digest of an answer is taken once
        for person, ratings in people.items():
            shown = ratings[-self.events :]
            history = self._history(shown, tags.get(person, []))
            for name, question, answer, candidates in questions(shown, habits):
                right = item(answer)
                yield Example(
                    key=f"movielens_people/{split}/{person}-{name}",
                    source="movielens_people",
                    task="vqa",
                    query=Item((*history, Text(question))),
                    positives=(right,),
                    negatives=tuple(item(c) for c in candidates if c != answer),
                    known=(right.id,),
                    label=f"{name}: {answer}",
                    instruction="Answer the question about this person.",
                    answer=answer,
                )

    def _history(self, ratings: Sequence[Rating], tags: Sequence[Event]) -> tuple[Part, ...]:
        """The latest ratings, and the tags that the person gave until then."""
        latest = ratings[-self.events :]
        events = tuple(Event(f"rated {r.stars:g}", r.film.about, r.time) for r in latest)
        before = tuple(t for t in tags if t.time <= latest[-1].time)[-self.events :]
        films = {r.film.title for r in ratings}
        # A tag may stand at a film that the row must not show.
        said = tuple(Event("tagged", f"{t.text}: {t.action}", t.time) for t in before if t.text in films)
        return (Events(events, "ratings"), *((Events(said, "tags"),) if said else ()))


Tags = Mapping[str, Sequence[Event]]  # person -> (action: the tag, text: the film's title, time)


def _films(root: Path) -> dict[str, Film]:
    rows = cells(root / "movies.csv", ("movieId", "title", "genres"))
    return {row["movieId"]: Film.of(row["movieId"], row["title"], row["genres"]) for row in rows}


def _people(root: Path, films: Mapping[str, Film]) -> dict[str, list[Rating]]:
    """Person -> their ratings, oldest first."""
    people: dict[str, list[Rating]] = defaultdict(list)
    for row in cells(root / "ratings.csv", ("userId", "movieId", "rating", "timestamp")):
        if row["movieId"] in films:
            people[row["userId"]].append(Rating(films[row["movieId"]], float(row["rating"]), float(row["timestamp"])))
    return {p: sorted(r, key=lambda r: (r.time, int(r.film.number))) for p, r in people.items()}


def _tags(root: Path, films: Mapping[str, Film]) -> Tags:
    tags: dict[str, list[Event]] = defaultdict(list)
    if (root / "tags.csv").is_file():
        for row in cells(root / "tags.csv", ("userId", "movieId", "tag", "timestamp")):
            if row["movieId"] in films:
                title = films[row["movieId"]].title
                tags[row["userId"]].append(Event(row["tag"], title, float(row["timestamp"])))
    return {person: sorted(events, key=lambda e: (e.time, e.text, e.action)) for person, events in tags.items()}


def _genres(split: str, films: Sequence[Film]) -> Iterator[Example]:
    """Title -> its genres."""
    for film in films:
        if film.genres:
            right = Item.text(", ".join(film.genres))
            yield Example(
                key=f"movielens_genres/{split}/{film.number}",
                source="movielens_genres",
                task="retrieval",
                query=Item.text(film.title),
                positives=(right,),
                known=(right.id,),
                label=", ".join(film.genres),
                instruction="Find the genres of the film.",
                answer=", ".join(film.genres),
            )


def _unit(*name: str) -> float:
    """A number in [0, 1) that hangs on the name alone."""
    return int(digest(*name)[:13], 16) / 16**13
