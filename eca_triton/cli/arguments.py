"""Arguments of the command line: what they may be called, and what a wrong one may have meant."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from ..util.near_names import near_names

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "half": "fp16", "float": "fp32"}


def dtype_name(text: str) -> str:
    """The short name of a dtype, by torch's name or its own, in any capitals: "bf16" of "torch.bfloat16"."""
    name = text.lower().removeprefix("torch.")
    return _DTYPES.get(name, name)


class Parser(argparse.ArgumentParser):
    """A parser whose errors say what a wrong option or choice may have meant; so do its sub-commands'."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; an unknown option ends the program with the names of near ones."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            named = next((each for each in unknown if each.startswith("-")), unknown[0])
            near = near_names(named.partition("=")[0], set(_options_of(self)))
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = near_names(str(value).lower(), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{near}") from None


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options_of(command)
