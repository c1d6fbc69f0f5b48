"""Pretends to be a stage. `control.json` in the base folder says how each stage behaves, by stage name.

The tests start it about a thousand times, so it imports only what takes no time: neither `json` nor `pathlib`, and
`signal` only where it is needed.
"""

from __future__ import annotations

import os
import sys
import time
from zlib import adler32, crc32

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes time as well
    from typing import Any, NoReturn


def read(path: str) -> Any:
    """Return the value in a JSON file, which Python can read once it knows three names."""
    with open(path, encoding="utf-8") as file:
        return eval(file.read(), {"true": True, "false": False, "null": None})


def to_json(value: object) -> str:
    """Return the JSON of names, numbers, lists and dictionaries."""
    return str(value).replace("'", '"')


def write(path: str, text: str, mode: str = "w") -> None:
    """Write a text, and the folders of its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, mode, encoding="utf-8") as file:
        file.write(text)


TINY: dict[str, object] = {
    "sequence_len": 32,
    "vocab_size": 300,
    "n_layer": 1,
    "n_head": 1,
    "n_kv_head": 1,
    "n_embd": 32,
}
TINY |= {"window_pattern": "L", "architecture": "seed"}
job = read(sys.argv[1])
folder, stage = job["stage_dir"], job["spec"]["stage"]
base = os.path.dirname(os.path.dirname(os.path.dirname(folder)))
settings = read(f"{base}/control.json") if os.path.exists(f"{base}/control.json") else {}
how = settings.get(stage, "well") if settings.get("only", "") in to_json(job["spec"]) else "well"
write(f"{base}/calls.txt", stage + "\n", "a")
print("device: pretend")
write(f"{folder}/sources.json", "[]")


def show_progress(**fields: object) -> None:
    """Write the progress of half the stage."""
    write(f"{folder}/progress.json", to_json({"fraction": 0.5, "text": "", **fields}))


def exit_with(text: str, code: int) -> NoReturn:
    """End the process, without waiting for its output, with the text of an error."""
    write(f"{folder}/error.txt", text + "\n")
    os._exit(code)


def kill_itself(name: str) -> None:
    """Send this process a signal."""
    import signal

    os.kill(os.getpid(), signal.Signals[name])


def wait_for_sigterm(then: str) -> None:
    """Wait for a minute, unless SIGTERM comes and is not ignored."""
    import signal

    def stop(number: int, frame: object) -> None:
        if then == "fail":
            exit_with("pretrain: no space left", 4)
        os.makedirs(f"{folder}/checkpoints/step_00000002", exist_ok=True)
        exit_with("stopped at step 2; suite a is kept; the same command continues", 75)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if then == "ignore" else stop)
    show_progress(text="step 2/4")
    time.sleep(60)


if how == "fail":
    exit_with("the loss was not finite three times in a row", 4)
if how == "differs":
    exit_with("the exported model answers otherwise", 5)
if how == "bug":
    exit_with("Traceback\nZeroDivisionError: division by zero", 1)
if how == "out of memory":
    show_progress(peak_memory_bytes=3 * 2**30)
    exit_with("pretrain ran out of memory ([malloc] Unable to allocate 9 bytes.)", 40)
if how.startswith("holds"):  # for example "holds 2, then SIGKILL": more rows than that end it so
    execution, (_, held, _, ending, *then) = job["execution"], how.replace(",", "").split()
    batch = (execution["micro_batch_size"] or 8) >> execution["batch_halvings"]
    show_progress(**({"micro_batch_size": batch} if stage in ("pretrain", "sft") else {}))
    if batch > int(held):
        if ending in ("SIGKILL", "SIGABRT"):
            kill_itself(ending)
        if ending == "Metal":
            print("[METAL] Command buffer execution failed: Insufficient Memory (00000008:...)", flush=True)
            os.abort()
        exit_with(stage + " ran out of memory ([malloc] Unable to allocate 9 bytes.)", 40)
    how = then[-1] if then else "well"
if how == "notes":
    print("note: step_00000008 is damaged\nnot a note\nnote: half", end="", flush=True)
if how == "notes on data":
    print("note: text: 1 file; left out: a.pdf\nnote: step_00000008 is damaged", flush=True)
if how == "edits the data":
    write(job["spec"]["source"]["path"][0], "one more line\n", "a")
if how == "loses its folder":  # to somebody who deletes or moves it while the stage runs
    os.rename(folder, folder + "-moved")
if how == "killed":
    kill_itself("SIGKILL")
if how == "is worse":  # than the stages that train well, until it is asked to stop
    worse = "".join(to_json({"step": step, "metrics": {"train/loss": 99.0}}) + "\n" for step in (1, 2))
    write(f"{folder}/metrics.jsonl", worse, "a")
if how in ("wait", "is worse", "fails on signal", "ignores signals"):
    wait_for_sigterm({"fails on signal": "fail", "ignores signals": "ignore"}.get(how, "stop"))
lines = ({"step": step, "metrics": {"train/loss": 8.0 / step, "train/lr": 0.1}} for step in range(1, 5))
write(f"{folder}/metrics.jsonl", "".join(to_json(line) + "\n" for line in lines), "a")
if stage in ("pretrain", "sft"):
    write(f"{folder}/checkpoints/step_00000004/weights.bin", "0" * 1000)
    write(f"{folder}/out/samples.md", str(job["execution"]["prompts"]))
inputs = str([job["spec"], sorted(job["upstream"])])
digest = f"{crc32(inputs.encode()):010d}{adler32(inputs.encode()):010d}"
write(f"{folder}/out/weights.bin", digest)
if stage in ("pretrain", "sft"):
    for name in ("model.safetensors", "tokenizer.model"):
        write(f"{folder}/out/model/{name}", inputs)
    model = job["spec"].get("model", TINY)
    write(f"{folder}/out/model/config.json", to_json({"format": 1, "model": {k: v for k, v in model.items() if v}}))
write(f"{folder}/out/timings.json", to_json({"seconds": time.time()}))
metrics: dict[str, float] = {
    "tokenizer": {},
    "base_eval": {"bpb": 1.5, "bpb.tokens": 71254.0},
    "pretrain": {"val/bpb": 1.25 if job["execution"]["validate_tokens"] == 64 else 1.5},
    "sft": {"train/loss": 2.0, "skipped_steps": 0.0},
    "chat_eval": {"spelling": 0.75, "spelling.stderr": 0.125, "spelling.centred": 0.5, "spelling.n": 12.0},
    "export": {},
}[stage]
if "varies" in settings and stage == "base_eval":
    with open(f"{job['upstream']['pretrain']}/weights.bin", encoding="utf-8") as weights:
        metrics["bpb"] = 1 + int(weights.read(10)) / 2**32
write(f"{folder}/out/result.json", to_json({"metrics": metrics}))
