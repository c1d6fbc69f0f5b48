"""Speed of the server: one client, and many at once, through HTTP; memory and threads after mixed requests.

    python tests/benchmarks/serving.py RUN [--clients 32] [--tokens 64] [--requests 200]

Starts `nanochat-run serve RUN` as a process of its own. Every client sends a greedy request of the same length. Prints
tokens per second of one client and of all, their ratio, whether each text is the one that a client gets alone, and the
server's memory and threads before and after `--requests` mixed requests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import requests
from parts.measuring import option_parser


def start(run: str) -> tuple[subprocess.Popen[str], str]:
    """Return the server's process and its URL, once it answers."""
    command = [sys.executable, "-m", "nanochat.cli.run", "serve", run, "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "it is a pipe"
    for line in process.stdout:
        if address := re.search(r"http://\S+/", line):
            url = address.group()
            break
    else:
        sys.exit(f"the server ended: {process.wait()}")
    while True:
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            time.sleep(0.05)
        else:
            return process, url


def ask(url: str, number: int, tokens: int) -> tuple[str, int]:
    """Return the text and the number of tokens of one client's answer."""
    body: dict[str, Any] = {"prompt": f"class Queue{number}:", "max_tokens": tokens, "temperature": 0}
    answer = requests.post(f"{url}v1/completions", json=body, timeout=600).json()
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def ask_all(url: str, clients: int, tokens: int) -> tuple[list[str], float]:
    """Return the texts of clients that ask at once, and their tokens per second together."""
    answers: dict[int, tuple[str, int]] = {}

    def run(number: int) -> None:
        answers[number] = ask(url, number, tokens)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return [answers[number][0] for number in range(clients)], sum(n for _, n in answers.values()) / seconds


def send_mixed(url: str, count: int) -> None:
    """Send requests of all kinds one after the other: whole, streamed, with several choices, refused, abandoned."""
    kinds: list[dict[str, Any]] = [
        {"prompt": "import os", "max_tokens": 20},
        {"prompt": "import os", "max_tokens": 20, "stream": True},
        {"prompt": "x", "n": 4, "max_tokens": 8, "temperature": 1.2},
        {"prompt": 7},
        {"prompt": "def f(", "max_tokens": 200, "stream": True},
    ]
    for number in range(count):
        body = kinds[number % len(kinds)]
        with requests.post(f"{url}v1/completions", json=body, timeout=600, stream=True) as response:
            if number % len(kinds) == 4:
                next(response.iter_content(64))  # then hang up
            else:
                assert response.content


def state(process: subprocess.Popen[str]) -> str:
    server = psutil.Process(process.pid)
    return f"{server.memory_info().rss / 2**20:.0f} MiB, {server.num_threads()} threads"


def main() -> None:
    parser = option_parser(__doc__, clients=32, tokens=64, requests=200)
    parser.add_argument("run")
    options = parser.parse_args()
    process, url = start(options.run)
    try:
        ask_all(url, options.clients, options.tokens)  # warms up
        alone, rates = [], []
        for number in range(options.clients):
            began = time.perf_counter()
            text, tokens = ask(url, number, options.tokens)
            rates.append(tokens / (time.perf_counter() - began))
            alone.append(text)
        single = sum(rates) / len(rates)
        together, rate = ask_all(url, options.clients, options.tokens)
        same = sum(a == b for a, b in zip(alone, together, strict=True))
        print(
            f"one client {single:,.0f} tokens/s; {options.clients} clients {rate:,.0f} tokens/s: {rate / single:.1f}x"
        )
        print(f"{same} of {options.clients} texts are those that a client gets alone")
        send_mixed(url, 25)
        before = state(process)
        send_mixed(url, options.requests)
        time.sleep(1)
        print(f"before {options.requests} mixed requests: {before}; after: {state(process)}")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
