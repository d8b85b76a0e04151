"""Run ``u2pl COMMAND``: the commands of the package under one name."""

import importlib
import os
import sys

from . import __version__

# Command: its module, and a line for the list. Modules are imported when they run.
COMMANDS = {
    "train": ("train", "train a network: supervised, mean-teacher or U²PL"),
    "evaluate": ("evaluate", "compute the mean IoU of a checkpoint"),
    "predict": ("predict", "label images and write masks, overlays and a gallery"),
    "export": ("export", "write a network to .safetensors, .onnx or .pt2"),
    "report": ("report", "write an HTML page of a run"),
    "doctor": ("doctor.__main__", "list every problem of a data set, with its fix"),
}


def usage() -> str:
    """Return the help of ``u2pl``."""
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: u2pl COMMAND [OPTIONS]", "", "Commands:", *lines, "", "u2pl COMMAND --help lists its options."]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run a command with the arguments after its name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version"):
        print(f"u2pl_fast {__version__}")
    elif name in COMMANDS:
        try:
            importlib.import_module(f"{__package__}.{COMMANDS[name][0]}").main(arguments[1:])
        except BrokenPipeError:  # `u2pl train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at exit
            sys.exit(1)
    else:
        sys.exit(f"error: no command {name}; choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
