"""A cross-encoder of random weights: our batches give what the stock class gives pair by pair."""

import numpy as np
import pytest
import torch
from omni2vec.data.types import Blob, DataError, Event, Events, Image, Item, Text
from omni2vec.train.judge import Pair
from omni2vec.train.judge_cross_encoder import CrossEncoder

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("cross") / "model", request.param)


def saved(folder, outputs):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tok = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=64, **named).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, max_position_embeddings=64, num_labels=outputs, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def words(rng, most):
    return " ".join(rng.choice(WORDS, int(rng.integers(1, most))))


def pairs(count=17, most=20, seed=0):
    rng = np.random.default_rng(seed)
    return [Pair(Item.text(words(rng, most)), Item.text(words(rng, most)), f"k{i}") for i in range(count)]


def alone(folder, query, candidate, longest):
    """The stock model on one pair, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        query, candidate, truncation="longest_first", max_length=longest, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return (logits[0] if len(logits) == 1 else logits[1] - logits[0]).item()


def texts(pair):
    return pair.query.parts[0].text, pair.candidate.parts[0].text


def test_batches_give_what_the_stock_model_gives_pair_by_pair(folder):
    asked = pairs()
    judge = CrossEncoder(folder, batch=4, device="cpu").open(None)
    theirs = [alone(folder, *texts(p), 64) for p in asked]
    assert np.abs(judge.scores(asked, "unused") - theirs).max() < 1e-5
    assert np.std(theirs) > 1e-2 and judge.told == {"pairs_cut": 0}


def test_the_sigmoid_of_a_score_is_in_order_with_it(folder):
    plain, bounded = (CrossEncoder(folder, sigmoid=s, device="cpu").open(None) for s in (False, True))
    assert np.abs(bounded.scores(pairs(), "") - 1 / (1 + np.exp(-plain.scores(pairs(), "")))).max() < 1e-6
    assert plain.digest != bounded.digest


def test_long_pairs_are_cut_as_the_stock_tokenizer_cuts_them_and_counted(folder):
    asked = pairs(6, 30, seed=3)
    judge = CrossEncoder(folder, max_tokens=16, device="cpu").open(None)
    found = judge.scores(asked, "")
    assert np.abs(found - [alone(folder, *texts(p), 16) for p in asked]).max() < 1e-5
    long = sum(3 + len(" ".join(texts(p)).split()) > 16 for p in asked)
    assert judge.told["pairs_cut"] == long > 0


def test_an_instruction_stands_in_front_of_the_query_where_asked_for(folder):
    pair = Pair(Item.text("w1 w2"), Item.text("w3"))
    judge = CrossEncoder(folder, instructed=True, device="cpu").open(None)
    assert judge.scores([pair], "w9 w8")[0] == pytest.approx(alone(folder, "w9 w8 w1 w2", "w3", 64), abs=1e-5)
    assert judge.scores([pair], "")[0] == pytest.approx(alone(folder, "w1 w2", "w3", 64), abs=1e-5)


def test_events_are_lines_and_a_picture_is_refused_by_key(folder):
    judge = CrossEncoder(folder, device="cpu").open(None)
    person = Item((Text("w1"), Events((Event("w2", "w3"), Event("w4", "w5")))))
    assert judge.scores([Pair(person, Item.text("w6"))], "")[0] == pytest.approx(
        alone(folder, "w1 w2 w3 w4 w5", "w6", 64), abs=1e-5
    )
    with pytest.raises(DataError, match="row 7: holds image, and this judge reads texts alone"):
        judge.scores([Pair(Item((Image(Blob(b""), 2, 2),)), Item.text("w1"), "row 7")], "")
    assert judge.scores([], "").shape == (0,)


def test_sentence_transformers_gives_the_same_logits(tmp_path):
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = saved(tmp_path / "model", 1)
    asked = pairs()
    model = theirs.CrossEncoder(folder, max_length=64, device="cpu", activation_fn=torch.nn.Identity())
    found = model.predict([texts(p) for p in asked], show_progress_bar=False)
    assert np.abs(CrossEncoder(folder, device="cpu").open(None).scores(asked, "") - found).max() < 1e-5


def test_three_outputs_and_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 outputs"):
        CrossEncoder(saved(tmp_path / "model", 3)).open(None)
    with pytest.raises(ValueError, match="max_tokens=2"):
        CrossEncoder("x", max_tokens=2)


def test_a_model_without_a_head_is_no_judge(tmp_path):
    from transformers import BertModel

    folder = saved(tmp_path / "model", 1)
    BertModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(ValueError, match="has no classifier"):
        CrossEncoder(folder).open(None)
