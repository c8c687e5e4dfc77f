"""A vision-language model asked yes or no: its score is the softmax of two logits, packed or alone, with pictures."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from omni2vec.data.asking import Asked, question_of
from omni2vec.data.types import Item, Limits, Prompted, Text
from omni2vec.train.judge import Pair
from omni2vec.train.judge_vlm import YesNo
from omni2vec.train.objectives.next_token import NextToken
from torch import nn

from ..model.small import mixed, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A head of its own size, so that scores are not all one half."""
    embedder = tiny()
    with torch.no_grad():
        torch.manual_seed(0)
        for module in embedder.modules():
            if isinstance(module, nn.Embedding):
                module.weight.mul_(8)
    path = tmp_path_factory.mktemp("judge") / "model"
    embedder.save(path)
    return str(path)


def pairs(count=11):
    items = mixed(count + 1, video=False)
    return [Pair(a, b, f"k{i}") for i, (a, b) in enumerate(pairwise(items))]


def logits_alone(judge, pair, instruction):
    """All logits at the last token of the prompt, of one pair by itself, without an answer."""
    embedder = judge.embedder
    item = question_of(pair.query, pair.candidate, judge.settings.question)
    inputs = embedder.format.collate([Prompted(item, "query", instruction)], [embedder.limits])
    with torch.no_grad():
        hidden = embedder.base.embed(inputs, embedder.base.towers(inputs), "causal")
        return embedder.base.logits(hidden[-1:])[0]


def first_token(judge, word):
    return judge.embedder.format.collate([Prompted(Item.text("x"), answer=word)], [judge.embedder.limits])


def test_packed_scores_are_the_softmax_over_the_two_words_of_each_pair_alone(folder):
    judge = YesNo(folder, tokens=300, device="cpu").open(None)
    found = judge.scores(pairs(), "judge the candidate")
    words = []
    for word in ("Yes", "No"):
        inputs = first_token(judge, word)
        words.append(int(inputs.ids[inputs.prefix[0]]))
    theirs = [logits_alone(judge, p, "judge the candidate")[words].softmax(0)[0].item() for p in pairs()]
    assert np.abs(found - theirs).max() < 1e-5
    assert np.std(np.log(theirs)) > 5e-4 and len(set(theirs)) == len(theirs)


def test_log_odds_are_the_logit_of_the_score(folder):
    plain, odds = (YesNo(folder, log_odds=o, device="cpu").open(None) for o in (False, True))
    assert np.abs(plain.scores(pairs(), "") - 1 / (1 + np.exp(-odds.scores(pairs(), "")))).max() < 1e-6
    assert plain.digest != odds.digest


def test_the_order_and_company_of_pairs_change_no_score(folder):
    judge = YesNo(folder, device="cpu").open(None)
    found = judge.scores(pairs(), "")
    assert np.abs(judge.scores(pairs()[::-1], "")[::-1] - found).max() < 1e-5
    assert abs(judge.scores(pairs()[2:3], "")[0] - found[2]) < 1e-5
    assert judge.scores([], "").shape == (0,)


def test_the_score_follows_the_instruction_the_question_and_the_sides(folder):
    judge = YesNo(folder, device="cpu").open(None)
    pair = pairs()[0]
    turned = Pair(pair.candidate, pair.query)
    other = YesNo(folder, question="Is it red?", device="cpu").open(None)
    values = [
        judge.scores([pair], ""),
        judge.scores([pair], "find it"),
        judge.scores([turned], ""),
        other.scores([pair], ""),
    ]
    assert len({round(float(v[0]), 6) for v in values}) == 4


def test_words_that_share_their_first_tokens_are_told_apart_where_they_differ(folder):
    """Behind the tokens that both words begin with, the model chooses between what follows."""
    judge = YesNo(folder, yes="it is one", no="it is two", device="cpu").open(None)
    pair = pairs()[0]
    prompt = judge._prompt(pair, "")
    same, yes, no = judge._words(prompt)
    assert same > 0
    inputs = judge.embedder.format.collate([prompt], [judge.embedder.limits])
    with torch.no_grad():
        hidden = judge.embedder.base.embed(inputs, judge.embedder.base.towers(inputs), "causal")
        logits = judge.embedder.base.logits(hidden)
    begun = logits[inputs.prefix[0] - 1 + same]
    assert judge.scores([pair], "")[0] == pytest.approx(begun[[yes, no]].softmax(0)[0].item(), abs=1e-5)


def test_a_judge_sees_the_prompt_of_a_yes_row_and_scores_its_likelihood(folder):
    """The label that NextToken trains on a row of Asked is the token that the judge reads."""
    from omni2vec.data.types import Example

    from .toy import ToyRows

    pair = pairs()[0]
    row = Example("k", "s", "retrieval", pair.query, (pair.candidate,), instruction="fits?")
    asked = Asked(ToyRows("s", (row,)), negatives=0).open(None)[0]
    judge = YesNo(folder, device="cpu").open(None)
    prompt = judge._prompt(replace(pair, key="k"), "fits?")
    assert (prompt.item.id, prompt.instruction, prompt.answer) == (asked.query.id, asked.instruction, asked.answer)
    inputs = judge.embedder.format.collate([prompt], [judge.embedder.limits])
    at = inputs.prefix[0] - 1
    assert int(inputs.labels[at]) == judge._words(prompt)[1]
    logits = logits_alone(judge, pair, "fits?")[None]
    two = logits[:, list(judge._words(prompt)[1:])]
    nll = NextToken().local(two, torch.tensor([0])).sum
    assert judge.scores([pair], "fits?")[0] == pytest.approx(float((-nll).exp()), abs=1e-5)


def test_texts_that_are_cut_are_counted(folder):
    long = Pair(Item.text("a red circle " * 200), Item((Text("blue"),)))
    judge = YesNo(folder, limits=Limits(max_tokens=150), device="cpu").open(None)
    judge.scores([long, Pair(Item.text("a"), Item.text("b"))], "")
    assert judge.told == {"pairs_cut": 1}


def test_of_two_words_of_which_one_begins_the_other_the_shorter_is_known_by_its_end(folder):
    judge = YesNo(folder, yes="red", no="red circle", device="cpu").open(None)
    same, yes, no = judge._words(judge._prompt(pairs()[0], ""))
    tokenizer = judge.embedder.backbone.processor.tokenizer
    assert same > 0 and tokenizer.decode([yes]) == "<|im_end|>" and "c" in tokenizer.decode([no])


def test_a_model_that_sees_its_answer_and_equal_words_are_refused(folder, tmp_path):
    both = tiny()
    both.settings = replace(both.settings, attention="bidirectional")
    both.save(tmp_path / "both")
    with pytest.raises(ValueError, match="attends both ways"):
        YesNo(str(tmp_path / "both"), device="cpu").open(None)
    with pytest.raises(ValueError, match="unlike"):
        YesNo(folder, yes="a", no="a")
