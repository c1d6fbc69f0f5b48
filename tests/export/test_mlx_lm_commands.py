"""mlx-lm's own commands work on an exported folder whose architecture it does not have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nanochat.export.folder import write_export
from nanochat.model.gpt import GPT
from nanochat.tokenizer import bpe

pytestmark = [pytest.mark.export, pytest.mark.slow]


@pytest.fixture(scope="module", params=["current", "portable"])
def folder(request, tmp_path_factory, make_random_model) -> Path:
    tokenizer = bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)
    model = make_random_model(request.param, sequence_len=256, vocab_size=tokenizer.vocab_size, make_model=GPT)
    path: Path = tmp_path_factory.mktemp(request.param) / "model"
    path.mkdir()
    write_export(path, model, tokenizer, "mlx")
    return path


def trust(folder: Path) -> list[str]:
    return ["--trust-remote-code"] if (folder / "nanochat_mlx.py").exists() else []


def run(*arguments: Any) -> str:
    done = subprocess.run([sys.executable, "-m", "mlx_lm", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_generate_and_convert_to_four_bits(folder, tmp_path):
    options = ["--prompt", "the cat", "--max-tokens", 8, *trust(folder)]
    assert "Generation: " in run("generate", "--model", folder, *options)
    quantized = tmp_path / "quantized"
    run("convert", "--hf-path", folder, "--mlx-path", quantized, "-q", *trust(folder))
    assert json.loads((quantized / "config.json").read_text())["quantization"]["bits"] == 4
    assert "Generation: " in run("generate", "--model", quantized, *options)


def test_lora_trains_an_adapter(folder, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "mat"}]}] * 8
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--iters", 4, "--batch-size", 2, "--num-layers", 2, "--adapter-path", tmp_path / "adapter"]
    run("lora", "--model", folder, "--train", "--data", tmp_path, *options, *trust(folder))
    assert (tmp_path / "adapter" / "adapters.safetensors").is_file()


def test_server_answers_one_prompt_after_the_other(folder, free_port):
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(free_port)]
    process = subprocess.Popen([*command, *trust(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                texts = [ask(free_port, "the cat sat " * n) for n in (1, 4)]
                break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        assert all(texts)
    finally:
        process.kill()
        process.wait()


def ask(port: int, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.loads(response.read())["choices"][0]["message"]["content"])


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
