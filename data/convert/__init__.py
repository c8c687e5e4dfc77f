"""Converting: tables into shards (pack), and small public sets into the tasks that they can serve, one file a set.

Each set is a Step that reads a folder of the set's own files, any of its splits, and fills
out/SPLIT/TASK/SPLIT-000000.tar; `Shards(step, "train/TASK")` reads one. SETS is how a command line names them.
"""

from .banking import Banking
from .cells import Cells
from .clips import Clips
from .clothing import Clothing
from .digits_spoken import DigitsSpoken
from .emoji import Emoji
from .limit_small import LimitSmall
from .mmeb_train import MmebTrain
from .movielens import MovieLens
from .nlvr import Nlvr
from .pack import pack
from .receipts import Receipts
from .sts import Sts

SETS = {
    "banking": Banking,
    "cells": Cells,
    "clips": Clips,
    "clothing": Clothing,
    "digits_spoken": DigitsSpoken,
    "emoji": Emoji,
    "limit_small": LimitSmall,
    "mmeb_train": MmebTrain,
    "movielens": MovieLens,
    "nlvr": Nlvr,
    "receipts": Receipts,
    "sts": Sts,
}

__all__ = [*(kind.__name__ for kind in SETS.values()), "SETS", "pack"]
