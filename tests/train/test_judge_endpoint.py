"""A judge behind a server: what is sent, how its probabilities are read, and that it is patient and keeps its key."""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from omni2vec.data.parts import probe
from omni2vec.data.types import Audio, Blob, DataError, Item, Text
from omni2vec.train.judge import Pair
from omni2vec.train.judge_endpoint import Endpoint, log_odds
from PIL import Image

KEY = "sk-very-secret-0123456789"


def says(**probabilities):
    """An answer whose first token has these probabilities."""
    top = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in probabilities.items()]
    return 200, {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}


@dataclass
class Server:
    answer: Callable
    asked: list = field(default_factory=list)  # (headers, body)
    times: list = field(default_factory=list)
    most: int = 0  # requests at a time
    now: int = 0
    url: str = ""


@contextmanager
def serving(answer):
    """answer(body, number) -> (status, JSON or bytes), and perhaps headers."""
    server, lock = Server(answer), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.asked.append((self.path, dict(self.headers), body))
                server.times.append(time.monotonic())
                number = len(server.asked)
                server.now += 1
                server.most = max(server.most, server.now)
            status, said, *more = server.answer(body, number)
            with lock:
                server.now -= 1
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(BrokenPipeError):  # it has given up
                self.wfile.write(data)

        def log_message(self, *args): ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def judge(server, **settings):
    return Endpoint(server.url, "vlm", **{"backoff_s": 0.0, "timeout_s": 5.0, **settings}).open(None)


def pair(query="q", candidate="c", key="rows/1"):
    return Pair(Item.text(query), Item.text(candidate), key)


def test_the_score_is_the_share_of_yes_among_both_words_however_they_are_written():
    with serving(lambda body, n: says(Yes=0.3, _yes=0.2, No=0.1, maybe=0.4)) as server:
        assert judge(server).scores([pair()], "")[0] == pytest.approx(0.5 / 0.6)
        assert judge(server, log_odds=True).scores([pair()], "")[0] == pytest.approx(math.log(5))
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_logprobs"]) == ("vlm", 1, 0, 20)


def test_a_word_that_is_not_listed_counts_as_the_least_likely_that_is():
    assert log_odds([("Yes", -0.1), ("the", -4.0)], "Yes", "No") == pytest.approx(3.9)
    assert log_odds([("the", -0.1), ("\u2581no", -2.0)], "Yes", "No") == pytest.approx(0.0)
    assert log_odds([("the", -0.1)], "Yes", "No") is None


def test_scores_keep_the_order_of_pairs_while_many_are_asked_at_a_time():
    def answer(body, number):
        value = int(body["messages"][0]["content"][0]["text"].split("Candidate: ")[1].split("\n")[0])
        time.sleep(0.02 * (value % 3))
        return says(Yes=(value + 1) / 20, No=1 - (value + 1) / 20)

    with serving(answer) as server:
        found = judge(server, concurrency=4).scores([pair(candidate=str(i)) for i in range(12)], "")
    assert np.abs(found - (np.arange(12) + 1) / 20).max() < 1e-6
    assert 2 <= server.most <= 4


def test_the_message_has_instruction_query_candidate_question_and_pictures_in_their_order():
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 10, 10)).save(buffer, "PNG")
    picture = probe("image", Blob(buffer.getvalue()), "x")
    asked = Pair(Item((picture, Text("find it"))), Item((Text("a hat"), picture)), "k")
    with serving(lambda body, n: says(Yes=0.9, No=0.1)) as server:
        judge(server, question="Fits?").scores([asked], "Be strict.")
    told = server.asked[0][2]["messages"][0]["content"]
    assert [c["type"] for c in told] == ["text", "image_url", "text", "image_url", "text"]
    assert [c["text"] for c in told[::2]] == ["Be strict.\nQuery: ", "find it\nCandidate: a hat", "\nFits?"]
    sent = told[1]["image_url"]["url"]
    assert base64.b64decode(sent.removeprefix("data:image/png;base64,")) == buffer.getvalue()


def test_a_picture_that_is_large_turned_or_of_another_format_is_sent_upright_as_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffers = [io.BytesIO() for _ in range(3)]
    Image.new("RGB", (300, 200)).save(buffers[0], "PNG")
    Image.new("RGB", (60, 40)).save(buffers[1], "JPEG", exif=exif)
    Image.new("RGB", (60, 40)).save(buffers[2], "TIFF")
    pictures = [probe("image", Blob(b.getvalue()), "x") for b in buffers]
    with serving(lambda body, n: says(Yes=0.9, No=0.1)) as server:
        judge(server, max_pixels=6000, concurrency=1).scores([Pair(Item((p,)), Item.text("c")) for p in pictures], "")
    sizes = []
    for _, _, body in server.asked:
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,")
        sizes.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size)
    assert sizes == [(94, 63), (40, 60), (60, 40)]


def test_a_busy_server_is_asked_again_and_its_tries_are_counted():
    def answer(body, number):
        return (
            (429, b"slow down", {"Retry-After": "0"})
            if number == 1
            else (503, b"")
            if number == 2
            else says(Yes=0.5, No=0.5)
        )

    with serving(answer) as server:
        asked = judge(server, retries=2)
        assert asked.scores([pair()], "")[0] == 0.5
    assert (len(server.asked), dict(asked.told)) == (3, {"requests": 3, "requests_again": 2})


def test_what_the_server_asks_for_is_waited():
    with serving(lambda body, n: (429, b"", {"Retry-After": "0.3"}) if n == 1 else says(Yes=0.5, No=0.5)) as server:
        judge(server).scores([pair()], "")
    assert server.times[1] - server.times[0] >= 0.3


def test_a_server_that_is_slow_broken_or_gone_is_named_after_the_last_try():
    def slow(body, number):
        time.sleep(0.5)
        return says(Yes=0.5, No=0.5)

    with serving(slow) as server, pytest.raises(DataError, match=r"rows/1: .* no answer in 2 tries.*timed out"):
        judge(server, timeout_s=0.05, retries=1).scores([pair()], "")
    with serving(lambda body, n: (200, b"<html>")) as server, pytest.raises(DataError, match="no JSON"):
        judge(server, retries=0).scores([pair()], "")
    with pytest.raises(DataError, match=r"rows/1: .*no answer in 1 tries"):  # nobody listens there any more
        judge(server, retries=0).scores([pair()], "")


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "Check the key in 'JUDGE_KEY'"), (404, "Check url and model"), (400, "Correct")]
)
def test_a_refusal_is_not_tried_again_and_the_key_is_in_no_error(monkeypatch, status, advice):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda body, n: (status, f"who is {KEY}? Bearer {KEY}".encode())) as server:
        asked = judge(server, key="JUDGE_KEY")
        with pytest.raises(DataError, match=advice) as caught:
            asked.scores([pair()], "")
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}" and len(server.asked) == 1
    assert KEY not in str(caught.value) and KEY not in repr(asked) and KEY not in repr(asked.settings)
    assert KEY not in asked.digest


def test_a_redirect_is_not_followed_with_the_key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda body, n: says(Yes=0.5, No=0.5)) as other:
        there = {"Location": f"{other.url}/chat/completions"}
        with (
            serving(lambda body, n: (307, b"", there)) as server,
            pytest.raises(DataError, match="sends requests elsewhere"),
        ):
            judge(server, key="JUDGE_KEY").scores([pair()], "")
    assert not other.asked


def test_the_first_failure_ends_what_waits():
    def answer(body, number):
        return (400, b"bad") if "bad" in body["messages"][0]["content"][0]["text"] else (503, b"")

    begun = time.monotonic()
    with serving(answer) as server, pytest.raises(DataError, match="row bad: "):
        asked = judge(server, backoff_s=30.0, concurrency=3)
        asked.scores([pair("bad", key="row bad"), *(pair() for _ in range(9))], "")
    assert time.monotonic() - begun < 10 and len(server.asked) < 10


def test_requests_are_spaced_where_a_rate_is_given():
    with serving(lambda body, n: says(Yes=0.5, No=0.5)) as server:
        judge(server, per_second=20.0).scores([pair() for _ in range(5)], "")
    assert server.times[-1] - min(server.times) >= 4 / 20 - 0.02


def test_an_answer_without_probabilities_or_without_the_words_names_its_row():
    plain = (200, {"choices": [{"message": {"content": "Yes"}}]})
    with serving(lambda body, n: plain) as server, pytest.raises(DataError, match=r"rows/1: .*must support"):
        judge(server).scores([pair()], "")
    other = says(Hello=0.9, well=0.1)
    with (
        serving(lambda body, n: other) as server,
        pytest.raises(DataError, match="neither 'Yes' nor 'No' is among the 2"),
    ):
        judge(server).scores([pair()], "")


def test_a_sound_is_refused_by_key():
    with serving(lambda body, n: says(Yes=1.0)) as server, pytest.raises(DataError, match="k: holds audio"):
        judge(server).scores([Pair(Item((Audio(Blob(b""), 1.0, 8000),)), Item.text("c"), "k")], "")


def test_a_key_that_is_not_set_and_settings_out_of_range_are_refused(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="variable 'JUDGE_KEY' is not set"):
        Endpoint("https://host/v1", "m", key="JUDGE_KEY").open(None)
    for url in ("host/v1", "https://user:hunter2@host/v1", "https://host/v1?key=hunter2"):
        with pytest.raises(ValueError, match="expected http") as caught:
            Endpoint(url, "m")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="concurrency=0"):
        Endpoint("https://host/v1", "m", concurrency=0)


def test_the_digest_follows_what_decides_a_score_and_not_how_fast_it_comes():
    def named(**settings):
        return Endpoint("https://host/v1", "m", **settings).open(None).digest

    assert named() == named(concurrency=3, timeout_s=1.0, retries=0)
    assert len({named(), named(question="?"), named(yes="True"), named(log_odds=True), named(top=5)}) == 5


def test_an_answer_that_is_no_text_and_a_refusal_that_is_cut_short_name_the_row():
    bytes_ = (200, b"\xff\xfe\x00")
    with serving(lambda body, n: bytes_) as server, pytest.raises(DataError, match=r"rows/1: .*no JSON"):
        judge(server, retries=0).scores([pair()], "")
    cut = (400, b"", {"Transfer-Encoding": "chunked"})
    with serving(lambda body, n: cut) as server, pytest.raises(DataError, match=r"rows/1: .*status 400"):
        judge(server, timeout_s=0.5).scores([pair()], "")


def test_a_probability_of_zero_as_servers_write_it_is_a_score_of_zero():
    def top(yes, no):
        listed = [{"token": "Yes", "logprob": yes}, {"token": "No", "logprob": no}]
        return 200, {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}

    with serving(lambda body, n: top(-9999.0, 0.0) if n == 1 else top(0.0, -9999.0)) as server:
        asked = judge(server, concurrency=1)
        assert asked.scores([pair(), pair()], "").tolist() == [0.0, 1.0]


def test_a_key_with_a_line_break_is_sent_without_it_and_one_that_no_header_holds_is_not_shown(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\r\n")
    with serving(lambda body, n: says(Yes=0.5, No=0.5)) as server:
        judge(server, key="JUDGE_KEY").scores([pair()], "")
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(ValueError, match="JUDGE_KEY") as caught:
        judge(server, key="JUDGE_KEY")
    assert KEY not in str(caught.value)
