"""Starting far into a run is a seek: the rows of the step are read, and none of those before it."""

from dataclasses import dataclass, field

from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.order import Order
from omni2vec.data.types import Example, Item, Limits

from .test_loader import Letters

FAR = 100_000


@dataclass(frozen=True)
class Counted:
    """Rows made when they are asked for; `read` notes which were."""

    name: str
    size: int
    read: list = field(default_factory=list, compare=False)
    digest: str = ""

    def open(self, where):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        name = f"{self.name}/{index}"
        return Example(name, self.name, "retrieval", Item.text(f"query {index}"), (Item.text(f"answer {index}"),))


def test_the_first_chunk_of_step_100_000_reads_its_rows_alone():
    sources = (Counted("a", 3_000_000), Counted("b", 700))  # the first epoch of one, the 286th of the other
    settings = {"batch": 16, "sub_batch": 8, "seed": 3}
    feeds = [Feed(s, weight=w) for s, w in zip(sources, (7.0, 1.0), strict=True)]
    wanted = Order.of((3_000_000, 700), (7.0, 1.0), **settings).rows_of(FAR)
    with Loader(sources, feeds, Letters(), Limits(), **settings, budget=1 << 20, start=FAR, stop=FAR + 1) as loader:
        plan, chunks = next(iter(loader))
        next(iter(chunks))
    assert plan.step == FAR
    assert list(plan.addresses) == wanted
    for i, source in enumerate(sources):
        assert set(source.read) == {a.row for a in wanted if a.source == i}
    assert sum(len(s.read) for s in sources) <= 3 * 16  # counted once, collated once: query and document


def test_the_same_step_is_the_same_rows_from_the_start_and_by_a_seek():
    order = Order.of((50, 9), (3.0, 1.0), batch=8, sub_batch=4, seed=1)
    draws = [a for step in range(40) for a in order.rows_of(step)]
    for source in (0, 1):  # what a replay would count, a seek knows
        assert [a.draw for a in draws if a.source == source] == list(range(sum(a.source == source for a in draws)))
    assert Order.of((50, 9), (3.0, 1.0), batch=8, sub_batch=4, seed=1).rows_of(39) == draws[-8:]
