"""Endpoint: a judge behind an OpenAI-compatible server, asked yes or no, read from what its first token might be.

The key is named by an environment variable: it is read when the judge is loaded, and stands in no record, log or error.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.addresses import redacted, unsigned
from ..data.asking import QUESTION, question_of
from ..data.types import DataError, Events, Image, Text, Where, digest
from .judge import Pair

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that another try may mend
_LONGEST_S = 60.0  # of waiting before another try
_AROUND = " \t\n\"'.*\u2581\u0120"  # what a tokenizer or a model puts around a word
_WEB = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}


@dataclass(frozen=True)
class Endpoint:
    """url: up to "/chat/completions", such as "https://host/v1"; model: its name there; key: the environment variable
    that holds the key, "" for none. The server must give `logprobs` with `top_logprobs`, as vLLM, SGLang and OpenAI do,
    and a model that thinks first is no judge: the first token counts.

    The score is p(yes) / (p(yes) + p(no)), or with log_odds its log odds. A word that is not among the `top` likeliest
    tokens counts as the least likely of them; if neither is, the row is named. concurrency: requests at a time, of each
    rank; per_second: requests begun in a second, 0 for no limit. A request that times out after timeout_s, or is
    refused for now, is tried again `retries` times, after backoff_s, then twice as long each time, or what the server
    asks for. max_pixels: of a picture; a larger one is shrunk.
    """

    url: str
    model: str
    key: str = ""
    question: str = QUESTION
    yes: str = "Yes"
    no: str = "No"
    log_odds: bool = False
    top: int = 20
    max_pixels: int = 1280 * 28 * 28
    concurrency: int = field(default=8, compare=False)
    per_second: float = field(default=0.0, compare=False)
    timeout_s: float = field(default=60.0, compare=False)
    retries: int = field(default=5, compare=False)
    backoff_s: float = field(default=1.0, compare=False)

    def __post_init__(self) -> None:
        host = self.url.partition("://")[2].partition("/")[0]
        if not self.url.startswith(("http://", "https://")) or "@" in host or "?" in self.url or "#" in self.url:
            raise ValueError(
                f"Endpoint: url={redacted(self.url)!r}; expected http(s)://host/v1 without a password or a query: "
                "a secret stands in an environment variable, key='NAME'"
            )
        for name, least in (("top", 1), ("max_pixels", 1), ("concurrency", 1), ("per_second", 0), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Endpoint: {name}={getattr(self, name)}; expected {least} or more")
        if not self.timeout_s > 0 or not self.backoff_s >= 0:
            raise ValueError(f"Endpoint: timeout_s={self.timeout_s}, backoff_s={self.backoff_s}; expected above 0")

    def outside(self, where: Where) -> dict[str, str]:
        """Nothing: what a server serves under a name, only the server knows."""
        return {}

    def open(self, where: Where) -> _Asking:
        """Raises DataError where the key's variable is not set."""
        secret = os.environ.get(self.key, "").strip() if self.key else ""
        if self.key and not secret:
            raise DataError(
                f"Endpoint: the environment variable {self.key!r} is not set; put the key of {self.url} in it"
            )
        if not (secret.isascii() and secret.isprintable()):  # http.client would print it in its error
            raise DataError(f"Endpoint: the key in {self.key!r} has characters that no header may hold; set it anew")
        words = (self.question, self.yes, self.no, self.log_odds, self.top, self.max_pixels)
        return _Asking(self, secret, digest("endpoint", unsigned(self.url), self.model, repr(words)))


class _Stay(urllib.request.HTTPRedirectHandler):
    """A key must not follow to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(eq=False)
class _Asking:
    """A Judge."""

    settings: Endpoint
    secret: str = field(repr=False)
    digest: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    due: float = 0.0  # when the next request may begin

    @property
    def told(self) -> Mapping[str, int]:
        return dict(self.counts)

    def scores(self, pairs: Sequence[Pair], instruction: str) -> NDArray[np.float32]:
        """See Judge. Raises DataError with the row's key."""
        self.stop.clear()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                found = list(pool.map(lambda p: self._score(p, instruction), pairs))
            except BaseException:  # an interrupt too: what waits for its next try must not be waited for
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return np.array(found, np.float32)

    def _score(self, pair: Pair, instruction: str) -> float:
        s = self.settings
        body = {
            "model": s.model,
            "messages": [{"role": "user", "content": content(pair, instruction, s.question, s.max_pixels)}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": s.top,
        }
        answer = self._ask(json.dumps(body).encode(), pair.key)
        try:
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            likely = [(str(t["token"]), float(t["logprob"])) for t in top]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{pair.key}: {s.url} gave no top_logprobs of a first token; the server and the model must support "
                f"logprobs. It said: {self._quoted(json.dumps(answer))}"
            ) from error
        odds = log_odds(likely, s.yes, s.no)
        if odds is None:
            said = ", ".join(repr(t) for t, _ in likely[:5])
            raise DataError(
                f"{pair.key}: neither {s.yes!r} nor {s.no!r} is among the {len(likely)} likeliest first tokens of "
                f"{s.model} ({said}); ask another question, or other words"
            )
        return odds if s.log_odds else _sigmoid(odds)

    def _ask(self, body: bytes, key: str) -> Any:
        """The answer's JSON, after as many tries as it takes. Raises DataError."""
        s = self.settings
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        )
        opener = urllib.request.build_opener(_Stay)
        why = ""
        for turn in range(s.retries + 1):
            self._wait_for_turn()
            request = urllib.request.Request(f"{s.url.rstrip('/')}/chat/completions", body, headers)
            delay = min(s.backoff_s * 2**turn, _LONGEST_S)
            try:
                with opener.open(request, timeout=s.timeout_s) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                why = f"status {error.code}: {self._quoted(_body(error))}"
                if error.code not in _AGAIN:
                    raise DataError(f"{key}: {s.url} refused it, {why}. {self._advice(error.code)}") from None
                delay = max(delay, _asked_for(error.headers.get("Retry-After")))
            except ValueError:  # not UTF-8, too
                why = "its answer is no JSON"
            except (OSError, http.client.HTTPException) as error:  # timeouts, too
                why = self._quoted(str(getattr(error, "reason", error)) or type(error).__name__)
            if turn < s.retries:
                self._count("requests_again")
                if self.stop.wait(delay):
                    break
        raise DataError(
            f"{key}: {s.url} gave no answer in {s.retries + 1} tries, the last time: {why}. Is it up? Lower "
            f"concurrency={s.concurrency} or set per_second; a Judged step goes on where it stood"
        )

    def _wait_for_turn(self) -> None:
        self._count("requests")
        if not self.settings.per_second:
            return
        with self.lock:
            now = time.monotonic()
            begin = max(now, self.due)
            self.due = begin + 1 / self.settings.per_second
        self.stop.wait(begin - now)

    def _count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def _quoted(self, text: str) -> str:
        """What a server said, without the key, in case that it repeats it."""
        hidden = text.replace(self.secret, "***") if self.secret else text
        return " ".join(redacted(hidden).split())[:300]

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            named = f"the key in {self.settings.key!r}" if self.settings.key else "key='NAME', the variable of its key"
            return f"Check {named}"
        if 300 <= status < 400:
            return "It sends requests elsewhere; give that url, since a key goes to no other host"
        return f"Check url and model={self.settings.model!r}" if status == 404 else "Correct the request, or the server"


def _sigmoid(odds: float) -> float:
    """Without overflow: servers write -9999 for a probability of zero, and their difference is as large."""
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def _body(error: urllib.error.HTTPError) -> str:
    """What a refusal says; nothing where the connection ends before it has said it."""
    try:
        return error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def log_odds(likely: Sequence[tuple[str, float]], yes: str, no: str) -> float | None:
    """log p(yes) - log p(no) from the likeliest tokens and their log probabilities; a word that is not among them
    counts as the least likely of them. None where neither is."""
    found = {}
    for word in (yes, no):
        own = [p for t, p in likely if t.strip(_AROUND).casefold() == word.casefold()]
        found[word] = float(np.logaddexp.reduce(own)) if own else None
    least = min((p for _, p in likely), default=0.0)
    a, b = found[yes], found[no]
    return None if a is None and b is None else (least if a is None else a) - (least if b is None else b)


def content(pair: Pair, instruction: str, question: str, max_pixels: int) -> list[dict[str, Any]]:
    """A message's content: texts that follow each other as one, pictures as data URLs. Raises DataError for a clip or a
    sound."""
    out: list[dict[str, Any]] = []

    def say(text: str) -> None:
        if out and out[-1]["type"] == "text":
            out[-1]["text"] += text
        elif text:
            out.append({"type": "text", "text": text})

    say(f"{instruction}\n" if instruction else "")
    for part in question_of(pair.query, pair.candidate, question).parts:
        match part:
            case Text(text):
                say(text)
            case Events(events, _):
                say("\n".join(f"{e.action} {e.text}" for e in events))
            case Image():
                out.append({"type": "image_url", "image_url": {"url": data_url(part, pair.key, max_pixels)}})
            case _:
                kind = type(part).__name__.lower()
                raise DataError(
                    f"{pair.key}: holds {kind}; an endpoint takes texts and pictures. YesNo asks a local model"
                )
    return out


def data_url(image: Image, key: str, max_pixels: int) -> str:
    """The picture's own bytes where they are of the web, upright and small enough; else a JPEG of it."""
    from PIL import Image as Pillow

    from ..data.parts.image import ORIENTATION, decode, open_picture

    data = image.blob.read()
    kind = next((k for head, k in _WEB.items() if data.startswith(head)), "")
    size = image.width * image.height
    if not kind or size > max_pixels or open_picture(data, key).getexif().get(ORIENTATION, 1) != 1:
        picture = Pillow.fromarray(decode(image, key).permute(1, 2, 0).contiguous().numpy())
        if size > max_pixels:
            by = math.sqrt(max_pixels / size)
            picture = picture.resize((max(1, int(image.width * by)), max(1, int(image.height * by))))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _asked_for(seconds: str | None) -> float:
    try:
        return min(max(float(seconds or 0), 0.0), _LONGEST_S)
    except ValueError:  # a date
        return 0.0
