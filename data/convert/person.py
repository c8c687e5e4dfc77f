"""Questions about a person whose answers follow from the ratings shown: what stands out, and how they rate.

Preference is lift with shrinkage, not a count: Drama is the commonest genre of half of all people.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

SHRINK = 20  # ratings of an average person that are mixed in
MARGIN = 1.1  # the first answer over the second; a closer call is not asked about
RATERS = ("strict", "middling", "generous")
_YEAR = re.compile(r"\((\d{4})\)\s*$")


@dataclass(frozen=True, eq=False)
class Film:
    """One film of the list; the same object wherever it is rated."""

    number: str
    title: str
    genres: tuple[str, ...]

    @staticmethod
    def of(number: str, title: str, genres: str) -> Film:
        """genres as the file has them: joined by bars, or in words that there are none."""
        return Film(number, title.strip(), () if genres.startswith("(") else tuple(genres.split("|")))

    @cached_property
    def about(self) -> str:
        return f"{self.title}: {', '.join(self.genres)}" if self.genres else self.title

    @cached_property
    def decade(self) -> str:
        """ "1990s"; "" where the title has no year."""
        year = _YEAR.search(self.title)
        return f"{year[1][:3]}0s" if year else ""


@dataclass(frozen=True)
class Rating:
    film: Film
    stars: float
    time: float


@dataclass(frozen=True)
class Habits:
    """What is usual: the shares of genres and decades among all ratings, and the terciles of people's mean ratings."""

    genres: Mapping[str, float]
    decades: Mapping[str, float]
    terciles: tuple[float, float]

    @staticmethod
    def of(people: Sequence[Sequence[Rating]]) -> Habits:
        ratings = [r for person in people for r in person]
        means = sorted(mean(person) for person in people)
        third = len(means) / 3
        return Habits(
            _shares(Counter(g for r in ratings for g in r.film.genres), len(ratings)),
            _shares(Counter(r.film.decade for r in ratings if r.film.decade), len(ratings)),
            (means[int(third)], means[int(2 * third)]) if means else (0.0, 0.0),
        )


def mean(ratings: Sequence[Rating]) -> float:
    return sum(r.stars for r in ratings) / len(ratings)


def questions(shown: Sequence[Rating], habits: Habits) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """(name, question, answer, all candidates) of what the ratings shown decide by a clear margin."""
    genres, decades = sorted(habits.genres), sorted(habits.decades)
    count = Counter(g for r in shown for g in r.film.genres)
    if answer := _first({g: _lift(count[g], len(shown), habits.genres[g]) for g in genres}):
        yield "genre", "Which genre does this person watch far more than others do?", answer, genres
    usual = mean(shown)
    above = {g: sum(r.stars - usual for r in shown if g in r.film.genres) / (count[g] + 5) for g in genres}
    if answer := _first(above):
        yield "liking", "Which genre does this person rate above their own average?", answer, genres
    ages = Counter(r.film.decade for r in shown)
    if answer := _first({d: _lift(ages[d], len(shown), habits.decades[d]) for d in decades}):
        yield "decade", "Films of which decade does this person watch far more than others do?", answer, decades
    low, high = habits.terciles
    answer = RATERS[(usual >= low) + (usual >= high)]
    yield "rater", "Is this person a strict, a middling or a generous rater?", answer, RATERS


def _lift(count: int, total: int, share: float) -> float:
    return (count + SHRINK * share) / (total + SHRINK) / share


def _first(values: Mapping[str, float]) -> str:
    """The name of the greatest value, "" where it is not positive or the second comes close."""
    ordered = sorted(values, key=lambda name: (-values[name], name))
    if not ordered or values[ordered[0]] <= 0:
        return ""
    clear = len(ordered) < 2 or values[ordered[0]] >= MARGIN * values[ordered[1]]
    return ordered[0] if clear else ""


def _shares(counts: Mapping[str, int], total: int) -> dict[str, float]:
    return {name: n / total for name, n in counts.items()}
