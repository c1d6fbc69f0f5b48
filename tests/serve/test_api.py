"""The API answers as the engine does, streams, refuses what it cannot honour, and frees what clients leave."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable

import pytest

from nanochat.inference.answer_text import AnswerDecoder
from nanochat.inference.chat_settings import ChatSettings
from nanochat.inference.engine import Batch
from nanochat.inference.sampling import Sampling
from nanochat.serve import request_checks
from nanochat.tokenizer.chat_format import Conversation, Message, render_for_completion

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 12}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 seconds"
        time.sleep(0.01)


def events(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def engine_text(server, ids: list[int], *, max_tokens: int) -> tuple[str, int]:
    """Return what the engine generates greedily, as text and as a number of tokens."""
    tokens = server.engine.complete([ids], max_tokens=max_tokens)[0]
    decoder = AnswerDecoder(server.engine.tokenizer)
    pieces = [piece for token in tokens for piece in decoder.feed(token)] + decoder.finish()
    return "".join(piece.text for piece in pieces), len(tokens)


def chat_ids(server, *texts: str) -> list[int]:
    roles = ("system", "user", "assistant", "user") if len(texts) == 4 else ("user",)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))
    return render_for_completion(server.engine.tokenizer, Conversation(messages))


def test_chat_completion_has_the_text_and_counts_of_the_engine(start_server, model_folder):
    from nanochat.checkpoint.model_folder import load_model, load_tokenizer
    from nanochat.inference.engine import Engine

    server = start_server()
    own = type(server)(server.url, server.generator, Engine(load_model(model_folder), load_tokenizer(model_folder)))
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and?"},
    ]
    body = server.post(CHAT, {"model": "small", "messages": messages, "temperature": 0, "max_tokens": 9}).json()
    ids = chat_ids(own, "be brief", "abc", "yes", "and?")
    text, count = engine_text(own, ids, max_tokens=9)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == ("length" if count == 9 else "stop")
    assert body["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": count,
        "total_tokens": len(ids) + count,
    }
    assert (body["object"], body["model"]) == ("chat.completion", "small")


def test_streamed_answer_is_the_whole_answer_in_pieces(server):
    whole = server.post(CHAT, QUESTION).json()
    response = server.post(CHAT, {**QUESTION, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


def test_plain_completion_continues_a_text(server):
    body = server.post(TEXT, {"prompt": "abc", "temperature": 0, "max_tokens": 6}).json()
    assert body["object"] == "text_completion"
    assert body["usage"]["completion_tokens"] <= 6
    streamed = events(server.post(TEXT, {"prompt": ["abc"], "temperature": 0, "max_tokens": 6, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == body["choices"][0]["text"]


def test_answer_ends_before_a_stop_string(server):
    """The string begins inside one token and ends inside another."""
    text = server.post(TEXT, {"prompt": "abc", "temperature": 0, "max_tokens": 40}).json()["choices"][0]["text"]
    at = len(text) // 2
    stop = text[at : at + 3]
    body = server.post(TEXT, {"prompt": "abc", "temperature": 0, "max_tokens": 40, "stop": ["never", stop]}).json()
    assert body["choices"][0]["text"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    streamed = events(
        server.post(TEXT, {"prompt": "abc", "temperature": 0, "max_tokens": 40, "stop": stop, "stream": True})
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == text[: text.index(stop)]
    wait_until(lambda: server.generator.load == (0, 0))


def test_choices_of_one_seed_differ_and_repeat(server):
    request = {**QUESTION, "temperature": 1.5, "n": 3, "seed": 7}
    first = [choice["message"]["content"] for choice in server.post(CHAT, request).json()["choices"]]
    again = [choice["message"]["content"] for choice in server.post(CHAT, request).json()["choices"]]
    assert first == again
    assert len(set(first)) == 3
    assert first != [c["message"]["content"] for c in server.post(CHAT, {**request, "seed": 8}).json()["choices"]]


def test_openai_client_streams_and_raises_its_own_errors(server):
    import openai  # here, because it takes a second, in each process that collects tests

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "abc"}]
    settings = {"model": "small", "messages": messages, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**settings).choices[0].message.content
    with client.chat.completions.create(**settings, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole == server.post(CHAT, QUESTION).json()["choices"][0]["message"]["content"]
    assert [model.id for model in client.models.list()] == ["small"]
    with pytest.raises(openai.NotFoundError, match="this server has `small`"):
        client.completions.create(model="gpt-5", prompt="a")
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.completions.create(model="small", prompt="a", frequency_penalty=1)


def test_many_clients_get_the_text_that_they_get_alone(server):
    """32 clients at once, 8 places: rows join and leave the batch."""
    prompts = [f"{number} abc"[: 2 + number % 5] for number in range(32)]
    request = lambda prompt: {"prompt": prompt, "temperature": 0, "max_tokens": 10 + len(prompt)}  # noqa: E731
    alone = [server.post(TEXT, request(prompt)).json()["choices"][0]["text"] for prompt in prompts]
    together: dict[int, str] = {}

    def ask(number: int) -> None:
        body = server.post(TEXT, request(prompts[number])).json()
        together[number] = body["choices"][0]["text"]

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert [together[number] for number in range(32)] == alone


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_frees_its_place(start_server, stream, monkeypatch):
    """The answers of the client that left would take 16 x 90 steps, each of them slowed down."""
    steps = []
    step = Batch.step

    def slow_step(batch):
        steps.append(batch)
        time.sleep(0.02)
        return step(batch)

    monkeypatch.setattr(Batch, "step", slow_step)
    server = start_server(max_rows=1)
    body = json.dumps({"prompt": "a", "max_tokens": 90, "temperature": 2, "n": 16, "stream": stream}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = [
            f"POST {TEXT} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        connection.sendall("\r\n".join([*head, "\r\n"]).encode() + body)
        wait_until(lambda: server.generator.load[0] == 1)
    wait_until(lambda: server.generator.load == (0, 0))
    assert len(steps) < 50
    assert server.post(TEXT, {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_full_queue_is_refused(start_server):
    """No request may wait, and each waits for a moment before it is taken."""
    server = start_server(max_waiting=0)
    for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
        response = server.post(TEXT, body)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "waiting already" in response.json()["error"]["message"]


REFUSED: list[tuple[str, object, str]] = [
    (TEXT, {"prompt": 3}, "prompt: "),
    (TEXT, {}, "prompt: "),
    (TEXT, [], "valid dictionary"),
    (TEXT, {"prompt": "a", "max_tokens": "many"}, "max_tokens: "),
    (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens: "),
    (TEXT, {"prompt": "a", "temperature": -1}, "temperature: "),
    (TEXT, {"prompt": "a", "top_p": 0}, "top_p: "),
    (TEXT, {"prompt": "a", "n": 17}, "n: "),
    (TEXT, {"prompt": "a", "seed": 1.5}, "seed: "),
    (TEXT, {"prompt": "a", "stream": "yes"}, "stream: "),
    (TEXT, {"prompt": "a", "stop": ["a"] * 5}, "stop"),
    (TEXT, {"prompt": "a", "logprobs": 3}, "`logprobs` is not supported"),
    (TEXT, {"prompt": "a", "no_such_field": 1}, "no_such_field: "),
    (TEXT, {"prompt": "a " * 200}, "context is 96"),
    (CHAT, {"messages": []}, "messages: "),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "user and assistant in turn"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}, "in turn"),
    (CHAT, {"messages": [{"role": "system", "content": "x"}]}, "in turn"),
    (CHAT, {**QUESTION, "tools": [{"type": "function"}]}, "`tools` is not supported"),
]  # fmt: skip


def test_wrong_requests_are_refused_with_a_message(server):
    for path, body, message in REFUSED:
        response = server.post(path, body)
        assert response.status_code == 400, (body, response.text)
        error = response.json()["error"]
        assert message in error["message"], (body, error)
        assert error["type"] == "invalid_request_error"


def test_bodies_that_are_not_json_or_too_large_are_refused(server):
    as_json = {"Content-Type": "application/json"}
    post = lambda data, headers=as_json: server.post(TEXT, None, data=data, headers=headers)  # noqa: E731
    for data in (b'{"prompt":', b"\xff\xfe", b"[" * 100_000, b""):
        assert post(data).status_code == 400
    assert post(b'{"prompt": "' + b"a" * 2**20 + b'"}').status_code == 413
    assert post(b"prompt=a", {"Content-Type": "application/x-www-form-urlencoded"}).status_code == 415


def test_unknown_models_and_addresses_are_refused(server):
    assert server.post(TEXT, {"prompt": "a", "model": "gpt-5"}).json()["error"]["code"] == "model_not_found"
    assert server.get("/v1/models/gpt-5").status_code == 404
    assert server.get("/v1/models/small").json()["id"] == "small"
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["small"]
    assert server.get("/no/such/page").status_code == 404
    assert server.get(TEXT).status_code == 405


def test_fields_that_change_nothing_are_accepted(server):
    neutral = {"user": "me", "frequency_penalty": 0, "logit_bias": None, "response_format": {"type": "text"}}
    assert server.post(CHAT, {**QUESTION, **neutral, "stop": None, "top_p": 1}).status_code == 200


def test_key_is_asked_for(start_server):
    server = start_server(key="s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer "}):
        for path in ("/v1/models", "/info", "/report"):
            assert server.get(path, headers=headers).status_code == 401
        assert server.post(TEXT, {"prompt": "a"}, headers=headers).status_code == 401
    allowed = {"Authorization": "Bearer s3cret", "Host": "example.org"}
    assert server.post(TEXT, {"prompt": "a"}, headers=allowed).status_code == 200
    assert server.get("/").status_code == 200


def test_pages_of_other_sites_cannot_use_a_server_without_a_key(server):
    """Their own name may point to this machine, which the Host header shows."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert server.get("/v1/models", headers={"Host": host}).status_code == 403
    assert (
        "access-control-allow-origin"
        not in server.get("/v1/models", headers={"Origin": "https://evil.example"}).headers
    )


def test_report_is_served_without_rights(start_server, tmp_path):
    (tmp_path / "report.html").write_text("<p>scores</p>")
    server = start_server(report=tmp_path / "report.html")
    response = server.get("/report")
    assert response.text == "<p>scores</p>"
    assert "sandbox" in response.headers["content-security-policy"]
    assert server.get("/info").json()["has_report"] is True


def test_page_asks_no_other_host(server):
    """The page, its script and its style name no address outside the server, and the policy would block it."""
    page = server.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/page/page.css", "/page/page.js"):
        content = server.get(path).text
        assert "//" not in content.replace("// ", "").replace("//\n", "")
    assert server.get("/page/no.js").status_code == 404


def test_page_begins_with_the_settings_of_every_chat(server):
    fields = dict(re.findall(r'<input id="(temperature|length)" [^>]*value="([^"]+)"', server.get("/").text))
    assert fields == {"temperature": str(ChatSettings.temperature), "length": str(ChatSettings.max_tokens)}
    script = server.get("/page/page.js").text
    assert not any(value in script for value in fields.values()), "the script reads them from the page"


def test_sampling_settings_reach_the_engine(server, monkeypatch):
    seen = []
    submit = type(server.generator).submit
    monkeypatch.setattr(
        type(server.generator), "submit", lambda self, job: (seen.append(job.request), submit(self, job))[1]
    )
    server.post(TEXT, {"prompt": "a", "max_tokens": 2, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 3})
    (request,) = seen
    assert (request.sampling, request.seed, request.max_tokens) == (Sampling(0.5, 7, 0.25), 3, 2)


def test_requests_leave_no_threads_and_no_work_behind(server):
    """Mixed requests: whole, streamed, refused, with several choices."""
    kinds = [
        {"prompt": "abc", "max_tokens": 5},
        {"prompt": "abc", "max_tokens": 5, "stream": True},
        {"prompt": 5},
        {"prompt": "ab", "n": 3, "max_tokens": 3},
    ]
    for number in range(8):
        server.post(TEXT, kinds[number % 4])
    threads = threading.active_count()
    for number in range(40):
        server.post(TEXT, kinds[number % 4])
    wait_until(lambda: server.generator.load == (0, 0))
    assert threading.active_count() <= threads


@pytest.mark.parametrize("stream", [True, False])
def test_numbers_beyond_those_of_arrays_are_answered(server, stream):
    """They are valid in JSON, and the thread that answers everybody survives them."""
    for odd in ({"top_k": 2**31}, {"top_k": 10**30}, {"max_tokens": 10**30}, {"seed": 2**63 - 1}):
        assert server.post(TEXT, {"prompt": "a", "max_tokens": 2, "stream": stream} | odd).status_code == 200
    greedy = server.post(TEXT, {"prompt": "a", "max_tokens": 5, "temperature": 0}).json()["choices"]
    for odd in ({"temperature": 1e-40}, {"temperature": 5e-324, "top_k": 3}, {"top_p": 5e-324}):
        assert server.post(TEXT, {"prompt": "a", "max_tokens": 5, "seed": 1} | odd).json()["choices"] == greedy


def test_texts_that_are_not_unicode_are_refused(server):
    """JSON can write half of a surrogate pair."""
    bodies = [
        (TEXT, {"prompt": "a\ud800"}),
        (TEXT, {"prompt": "a", "stream": True, "\ud800": 1}),
        (CHAT, {"messages": [{"role": "user", "content": "\udc00"}]}),
        (CHAT, {"messages": [{"role": "system", "content": "\ud800"}, {"role": "user", "content": "a"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "stream": True}),
    ]
    for path, body in bodies:
        response = server.post(path, body)
        assert response.status_code == 400, body
        assert "nicode" in response.json()["error"]["message"]


@pytest.mark.parametrize("method", ["add", "step"])
def test_every_client_hears_that_the_generator_has_failed(server, monkeypatch, method):
    """Those that wait get the reason, and so do those that come later."""
    failed = threading.Event()
    server.generator.on_failure = failed.set

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Batch, method, fail)
    response = server.post(TEXT, {"prompt": "a", "n": 3})
    assert failed.wait(30)
    for answer in (response, server.post(TEXT, {"prompt": "a"}), server.post(TEXT, {"prompt": "a", "stream": True})):
        assert answer.status_code == 500
        assert "out of memory" in answer.json()["error"]["message"]
    assert str(server.generator.failure) == "out of memory"


def test_addresses_of_this_machine_need_no_key(server):
    for host in ("127.0.0.1:8000", "LocalHost:8000", "[::1]:8000", "127.0.0.2"):
        assert server.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("", "192.168.0.1", "[::2]", "localhost.evil.example"):
        assert server.get("/v1/models", headers={"Host": host}).status_code == 403


def test_key_with_spaces_around_it_is_accepted(start_server):
    server = start_server(key=" s3cret\n")
    assert server.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_report_that_was_deleted_is_not_found(start_server, tmp_path):
    server = start_server(report=tmp_path / "report.html")
    assert server.get("/report").status_code == 404


def test_request_that_is_never_sent_whole_is_refused(server, monkeypatch):
    """A server that shuts down would wait for it."""
    monkeypatch.setattr(request_checks, "BODY_SECONDS", 0.05)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = ["Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 100"]
        connection.sendall("\r\n".join([f"POST {TEXT} HTTP/1.1", *head, "\r\n"]).encode() + b"{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
