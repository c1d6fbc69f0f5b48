"""The commands that work on trained models: serve, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from nanochat.cli.arguments.parser import Parser, Verb, add_device, add_model, port, positive
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.model.architectures import VARIANTS


def _serve(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine alone; any other needs NANOCHAT_SERVE_KEY)",
    )
    parser.add_argument("--port", type=port, help="port to listen on (default: the first free one from 8000)")
    parser.add_argument(
        "--rows", type=positive, default=GENERATED_ROWS, help="answers generated at a time (default: %(default)s)"
    )
    add_device(parser)


def _import(parser: Parser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="a checkpoint of PyTorch nanochat (model_*.pt or its folder), a folder of mlx-lm or transformers of type"
        " nanochat, or a safetensors file",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="model folder to write")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="tokenizer.pkl, tokenizer.json or tokenizer.model (default: the one next to the model, or in `tokenizer/`"
        " of PyTorch nanochat's base folder)",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="configuration of the model (default: the one next to its weights)"
    )
    parser.add_argument(
        "--architecture",
        choices=tuple(VARIANTS),
        help="architecture of the model, if its configuration does not name one (default: recognised by its weights)",
    )


def _export(parser: Parser) -> None:
    from nanochat.export.model_config import Format
    from nanochat.recipe.schema.export_section import GroupSize, Quantize, QuantizedBits

    add_model(parser)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
    parser.add_argument(
        "--format", choices=get_args(Format), required=True, help="mlx-lm, transformers or PyTorch nanochat"
    )
    parser.add_argument(
        "--quantize-bits", type=int, choices=get_args(QuantizedBits), help="round the matrices to this size (mlx only)"
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=get_args(GroupSize),
        default=Quantize.model_fields["group_size"].default,
        help="numbers that share a scale (default: %(default)s)",
    )


MODELS = (
    Verb(
        "serve",
        "chat in the browser, and serve an OpenAI-compatible API",
        "serve_commands.serve",
        ("serve quickstart", "serve quickstart --port 8080"),
        _serve,
    ),
    Verb(
        "import",
        "convert a model of nanochat, mlx-lm or transformers to ours",
        "model_commands.import_model",
        ("import ~/.cache/nanochat/base_checkpoints/d12 d12",),
        _import,
    ),
    Verb(
        "export",
        "write a model for mlx-lm, transformers or PyTorch nanochat",
        "model_commands.export_model",
        ("export quickstart out/quickstart --format mlx --quantize-bits 4",),
        _export,
    ),
)
