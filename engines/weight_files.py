"""Files with the weights of published networks: read without running anything in them, hashed, and spoken of in errors.

Needs torch.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edge.errors import MasklineError

__all__ = ["FILES", "file_sha256", "find_file", "name_some", "read_tensors"]

FILES = ("model.safetensors", "pytorch_model.bin")
"""What is looked for in a folder, beside its config.json."""
NAMED = 4
"""At most so many keys are named in an error."""


def find_file(path: Path) -> Path:
    """The file itself, where a folder was named. Raises MasklineError."""
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise MasklineError(f"checkpoint {path}: a folder without {' or '.join(FILES)}; name a checkpoint's file")
    if not path.is_file():
        raise MasklineError(f"checkpoint {path}: there is no such file; name a .pth or .safetensors file, or a folder")
    return path


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The state dict in a file, torch's or safetensors: which, its first bytes say. Raises MasklineError."""
    with path.open("rb") as file:
        first = file.read(9)
    if first[8:] == b"{":  # before the others: the length of safetensors' header may begin as a pickle does
        try:
            return load_file(path)
        except SafetensorError as error:
            raise MasklineError(f"checkpoint {path}: damaged or cut off ({error}); get the file again") from error
    if first.startswith((b"PK\x03\x04", b"\x80")):
        return _torch_tensors(path)
    raise MasklineError(
        f"checkpoint {path}: neither a torch file nor safetensors, it begins with {first!r}; get the file again"
    )


def _torch_tensors(path: Path) -> Mapping[str, Any]:
    try:
        # Checkpoints that He et al.'s code writes while training also hold its options: plain data in a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises whatever it runs into
        if isinstance(error, UnpicklingError) and "unsupported global" in str(error).lower():
            raise MasklineError(
                f"checkpoint {path}: holds more than weights and plain data, and might run code; it is not loaded. "
                "Take the published file, or one in safetensors"
            ) from error
        raise MasklineError(f"checkpoint {path}: damaged, cut off or no checkpoint; get the file again") from error
    held = held.get("model", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise MasklineError(f"checkpoint {path}: holds a {type(held).__name__}, expected tensors by name")
    return held


def name_some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def file_sha256(path: Path) -> str:
    """Of what is in a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
