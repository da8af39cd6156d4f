"""The end of every `--help`: two examples of the command, and what its exit codes mean."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, str]] = {
    "export": (
        "vimdeploy export vim_tiny.pth -o vim_tiny.onnx",
        "vimdeploy export tuned.pth --classes names.txt --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    ),
    "verify": ("vimdeploy verify vim_tiny.onnx", "vimdeploy verify vim_tiny.onnx --ladder --engine vim_tiny.engine"),
    "predict": (
        "vimdeploy predict vim_tiny.onnx photo.jpg",
        "vimdeploy predict vim_tiny.onnx folder/ --format csv",
    ),
    "inspect": ("vimdeploy inspect vim_tiny.pth", "vimdeploy inspect vim_tiny.onnx --layers"),
    "recipes": ("vimdeploy recipes", "vimdeploy recipes --json"),
    "doctor": ("vimdeploy doctor", "vimdeploy doctor --json"),
    "demo": ("vimdeploy demo", "vimdeploy demo -o somewhere"),
    "convert": (
        "vimdeploy convert vim_tiny.onnx --fp16",
        "vimdeploy convert vim_tiny.onnx --bf16 --keep '*scan*' -o half.onnx",
    ),
    "build-engine": (
        "vimdeploy build-engine vim_tiny.onnx --fp16 --max-batch 16",
        "vimdeploy build-engine vim_tiny.onnx --runtime rtx --compute-capability sm_89",
    ),
    "build-plugin": ("vimdeploy build-plugin", "vimdeploy build-plugin --arch sm_87"),
}
EXIT_CODES = {
    0: "done",
    1: "what was compared is not equal within its contract",
    2: "something to mend: the message says what, and what to do",
    70: "a bug in vimdeploy",
    130: "interrupted; nothing is half written",
}


def add_to(app: typer.Typer) -> None:
    """Put examples and exit codes below the help of every command that has some."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    for command in app.registered_commands:
        name = str(command.name or getattr(command.callback, "__name__", ""))
        if examples := EXAMPLES.get(name):
            lines = "\n".join(f"  {example}" for example in examples)
            # A paragraph that begins with a backspace is printed as it stands.
            command.epilog = f"\b\nExamples:\n{lines}\n\n\b\nExit codes:\n{codes}"
