"""Changes of bytes, of JSON and of archives that a damaged, a careless or a hostile file may show."""

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

INTERESTING = (0, 1, -1, 2, 127, 255, 256, 65535, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
TEXTS = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "1e30", "1e400", "9" * 400, "none", "None", "null", "true", "a", "a,b",
    "=1+1", "\0", "\n", "é", "\u202e", "\ud800", "\U0001f40d", "../x", "/", "/dev/null", "~", "-", "--", "%s", "{}",
    "x" * 5000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.5, 1e30, 1e308, float("nan"), float("inf"),
    [], {}, [[]], [None], {"": 0}, *TEXTS,
)  # fmt: skip


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """One to three changes somewhere, and always some change."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change(random, changed)
    return bytes(changed) if changed != content else bytes(changed) + b"\0"


def _change(random: Random, content: bytearray) -> None:
    place = random.randrange(len(content) + 1)
    length = random.choice((1, 1, 2, 4, 8, 64, 1024))
    kind = random.randrange(8)
    if kind == 0 and place < len(content):
        content[place] ^= 1 << random.randrange(8)
    elif kind == 1:
        content[place : place + length] = random.randbytes(length)
    elif kind == 2:
        del content[place:]
    elif kind == 3:
        del content[place : place + length]
    elif kind == 4:
        content[place:place] = content[place : place + length]
    elif kind == 5:
        width = random.choice((1, 2, 4, 8))
        number = random.choice(INTERESTING) % (1 << 8 * width)
        content[place : place + width] = number.to_bytes(width, random.choice(("little", "big")))
    elif kind == 6:
        content[place : place + length] = bytes(length)
    else:
        other = random.randrange(len(content) + 1)
        content[place : place + length] = content[other : other + length]


def mutated_tree(random: Random, tree: Any) -> tuple[Any, str]:
    """A copy of what JSON holds with one entry changed, and what was done."""
    root = [copy.deepcopy(tree)]
    holder, key = random.choice(list(_places(root)))
    where = "the whole" if holder is root else f"{key!r}"
    kind = random.randrange(6)
    if kind == 0 and holder is not root:
        del holder[key]
        return root[0], f"without {where}"
    if kind == 1 and isinstance(holder[key], list) and holder[key]:
        holder[key] = holder[key][:-1] if random.random() < 0.5 else holder[key] * 2
        return root[0], f"{where} of another length"
    if kind == 2 and isinstance(holder[key], dict):
        holder[key][random.choice(TEXTS)] = random.choice(VALUES)
        return root[0], f"something more in {where}"
    if kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = random.choice(
            (-holder[key], holder[key] + 1, str(holder[key]), [holder[key]], holder[key] * 1e30)
        )
        return root[0], f"{where} as {holder[key]!r}"
    holder[key] = copy.deepcopy(random.choice(VALUES))
    return root[0], f"{where} as {str(holder[key])[:40]!r}"


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        yield holder, key
        if isinstance(holder[key], (list, dict)):
            yield from _places(holder[key])


def mutated_json(random: Random, content: bytes) -> tuple[bytes, str]:
    """A changed JSON file, mostly one that is still JSON, and what was done."""
    kind = random.randrange(10)
    if kind == 0:
        return mutated_bytes(random, content), "with other bytes"
    if kind == 1:
        text = content.decode()
        return random.choice(
            (
                (b"", "empty"),
                (b"[" * 100_000 + b"]" * 100_000, "nested a hundred thousand deep"),
                (text.encode("utf-16"), "in UTF-16"),
                (b"\xef\xbb\xbf" + content, "with a byte-order mark"),
                (content * 2, "twice"),
                (bytes(len(content)), "of zeros"),
                (b'{"a": ' + b"9" * 5000 + b"}", "with a number of 5000 digits"),
            )
        )
    tree, what = mutated_tree(random, json.loads(content))
    return json.dumps(tree).encode(), what


def rewritten_zip(
    content: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None], *, packed: bool = False
) -> bytes:
    """An archive anew with right checksums: `change` gives the name and the content of each member, or None."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            made = change(info.filename, old.read(info))
            if made is not None:
                new.writestr(made[0], made[1], zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return target.getvalue()


def mutated_zip(random: Random, content: bytes) -> tuple[bytes, str]:
    """An archive with right checksums that lacks a member or has a changed, renamed, or packed one."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        chosen = random.choice(archive.namelist())
    kind = random.choice(("without", "changed", "changed", "changed", "renamed", "packed", "empty"))

    def change(name: str, member: bytes) -> tuple[str, bytes] | None:
        if name != chosen:
            return name, member
        if kind == "without":
            return None
        if kind == "changed":
            return name, mutated_bytes(random, member)
        if kind == "empty":
            return name, b""
        return (f"{name}x" if kind == "renamed" else name), member

    return rewritten_zip(content, change, packed=kind == "packed"), f"member {chosen} {kind}"
