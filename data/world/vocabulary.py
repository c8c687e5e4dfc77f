"""The words of the synthetic world: few enough that a model of four million parameters learns them in minutes.

Every word means one thing everywhere: "red" is the same colour on a picture, in a clip and in somebody's history.
"""

from __future__ import annotations

COLOURS = {
    "red": "#d93a3f",
    "orange": "#f08c2e",
    "yellow": "#f2cf3b",
    "green": "#3f9d57",
    "blue": "#3a6fd0",
    "purple": "#8a4fbf",
    "pink": "#f09ac0",
    "black": "#34373d",
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("big", "small")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")  # NUMBERS[n - 1] is the word for n
# The second voice of paraphrases: the same things in other words.
SYNONYMS = {
    "big": "large",
    "small": "little",
    "plain": "solid",
    "striped": "lined",
    "dotted": "spotted",
}

# Nine cells of a 3 x 3 grid, then the four halves that two larger things share: name -> centre x, y, width (of 1).
_ROWS = {"top": 0.18, "middle": 0.5, "bottom": 0.82}
_COLUMNS = {"left": 0.18, "middle": 0.5, "right": 0.82}
CELLS = {
    "centre" if row == column else f"{row} {column}": (x, y, 0.32)
    for row, y in _ROWS.items()
    for column, x in _COLUMNS.items()
}
HALVES = {
    "upper half": (0.5, 0.26, 0.48),
    "lower half": (0.5, 0.74, 0.48),
    "left half": (0.26, 0.5, 0.48),
    "right half": (0.74, 0.5, 0.48),
}
SPOTS = CELLS | HALVES
TINTS = ("#fbf9f4", "#f3f7fa", "#f8f4fa", "#f4f8f1")  # backgrounds: paper, mist, lilac, sage

MOVES = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "blinks", "jumps")

INSTRUMENTS = ("flute", "organ", "bell", "buzzer")
COUNTS = ("three", "four", "five", "six")  # of tones: two would carry no rhythm
PITCHES = ("low", "middle", "high")
MELODIES = ("rising", "falling", "steady")
TEMPOS = ("slow", "fast")
RHYTHMS = ("even", "galloping")

TOPICS = (
    "Apple", "Bird", "Cloud", "Dance", "Earth", "Forest", "Garden", "House",
    "Island", "Jazz", "Kitchen", "Lake", "Music", "Night", "Ocean", "Piano",
)  # fmt: skip
PAPERS = (
    "Album", "Book", "Club", "Diary", "Events", "Facts", "Guide", "History",
    "Ideas", "Journal", "Letter", "Menu", "News", "Plan", "Report", "Story",
)  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
GROCERIES = ("tea", "milk", "rice", "eggs", "salt", "nuts", "figs", "corn")
AMOUNTS = tuple(range(2, 10))

GOODS = ("mug", "lamp", "chair", "shirt", "watch", "bag", "hat", "vase")
