"""Changes of bytes, texts and nested values, as damage and malice make them; seeded."""

import numpy as np
import torch

EXTREMES = [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0",
            b"\x01\0\0\0", b"\0\0\0\x01", b"\xff" * 8]  # fmt: skip
WORDS = ["-1", "0", "nan", ".nan", "inf", "-.inf", "1e999", "9" * 30, "9" * 5000, "''", "null", "~",
         "true", "[]", "{}", "[[[[", "*a", "&a", "<<", "!!int x", "2020-13-45", "é\0", ":", "- ",
         ",", ";", "\t", "../../x", "!!python/object/apply:os.system [ls]"]  # fmt: skip


def mutate_bytes(rng, data):
    """The content of a file, changed in one to four places."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # Headers and tables of contents decide most.
        place = rng.choice([rng.randrange(len(data) + 1), rng.randrange(min(300, len(data) + 1)),
                            len(data) - rng.randrange(min(300, len(data) + 1))])  # fmt: skip
        length = rng.choice([1, 2, 4, 16, len(data) // 4])
        part = data[place : place + length]
        flipped = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:] if part else b"\x80"
        new = [rng.randbytes(len(part)), rng.choice(EXTREMES), b"", part + part, bytes(len(part)),
               part[::-1], flipped]  # fmt: skip
        data[place : place + length] = rng.choice(new)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def mutate_text(rng, data):
    """A text with words replaced, lines repeated, moved or lost."""
    lines = data.decode().splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(lines))
        tokens = [t for t in lines[at].replace(",", " ").replace(":", " ").split() if t]
        change = rng.randrange(4)
        if change < 2 and tokens:
            lines[at] = lines[at].replace(rng.choice(tokens), rng.choice(WORDS), 1)
        elif change == 2:
            lines.insert(at, rng.choice([*lines, rng.choice(WORDS) + "\n"]))
        elif len(lines) > 1:
            del lines[at]
    return "".join(lines).encode(errors="replace")


def odd_values(rng, old):
    """Something else in the place of a value."""
    laughs = ()
    for _ in range(25):
        laughs = (laughs, laughs)
    cycle = []
    cycle.append(cycle)
    odd = [None, -1, 0, 10**9, 10**400, float("nan"), float("inf"), -5.5, True, "x", "x" * 10**5,
           b"x", [], {}, (), [[1], [2, 3]], {"x": 1}, laughs, cycle, range(3),
           np.zeros(0), np.array(None), np.full((3, 3), np.nan), np.zeros((3, 3), complex),
           np.zeros((2, 2), "S5"), np.float64(3), np.broadcast_to(0.0, (2000, 2000))]  # fmt: skip
    if isinstance(old, np.ndarray) and old.dtype.kind in "biuf" and old.size:
        worse = old.copy()
        worse.flat[rng.randrange(old.size)] = rng.choice([0, 1, 200])
        odd += [old.T, old[..., None], old[:1], -old.astype(float), old * 1e30, old.astype(int),
                old.astype(object), old.astype(str), worse] * 2  # fmt: skip
    if isinstance(old, torch.Tensor):
        odd += [old[..., None], old.mT if old.ndim > 1 else old.flatten()[:1], old.double(),
                old.int(),
                old.to_sparse(), old * torch.nan, old.half(), old.bool(), old * 1e30,
                torch.zeros(old.shape, device="meta"), old.expand(2, *old.shape),
                old.requires_grad_() if old.is_floating_point() else old] * 2  # fmt: skip
    if isinstance(old, int | float):
        odd += [-old, old * 2, old + 1, float(old), str(old), [old]] * 3
    return rng.choice(odd)


def mutate_values(rng, value):
    """Nested values with one of them, anywhere, replaced, lost or under another name."""
    if not isinstance(value, dict | list | tuple) or not value or rng.random() < 0.1:
        return odd_values(rng, value)
    if isinstance(value, dict):
        key = rng.choice(sorted(value, key=str))
        new, chance = dict(value), rng.random()
        if chance < 0.1:
            del new[key]
        elif chance < 0.2:
            new[rng.choice([key, "x", 5, None, (), "__class__"])] = new.pop(key)
        else:
            new[key] = mutate_values(rng, value[key])
        return new
    at = rng.randrange(len(value))
    return type(value)([*value[:at], mutate_values(rng, value[at]), *value[at + 1 :]])
