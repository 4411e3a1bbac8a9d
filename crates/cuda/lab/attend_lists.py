"""Patterns and the block lists of the attention kernels: the model of what the host builds.

Positions are cut in units of 64, a unit starting every `step` positions. `units` walks a pattern's
score matrix by halves, asking `coverage` of stretches and the predicate only where that says
"partial", so its time is that of the units kept. `lists` makes of them what a launch reads.
"""

import numpy as np

UNIT = 64
FULL, EMPTY = 0xFFFFFFFF, 0xFFFFFFFE


class Pattern:
    """A predicate of head, query and key, and what it keeps of ranges [q0, q1) x [k0, k1)."""

    kinds = 1

    def __init__(self, name, *numbers):
        self.name, self.numbers = name, numbers

    def allows(self, head, i, j):
        n = self.numbers
        if self.name == "full":
            return (i >= 0) & (j >= 0)
        if self.name == "causal":
            return j <= i
        if self.name == "before":
            return j < i
        if self.name == "local":
            return (j <= i) & (i - j < n[0])
        if self.name == "strided":
            return (j <= i) & ((i - j) % n[0] == 0)
        if self.name == "block":
            return (j <= i) & (i // n[0] == j // n[0])
        if self.name == "summary":
            return (j <= i) & (j % n[0] >= n[0] - n[1])
        key = j // n[1] * n[0] + n[0] - n[1] + j % n[1]
        return key // n[0] < i // n[0] if self.name == "columns_strict" else key <= i

    def coverage(self, head, q, k):
        """ "empty" and "full" are certain; "partial" may be cautious."""
        n, (q0, q1), (k0, k1) = self.numbers, (q[0], q[1] - 1), (k[0], k[1] - 1)

        def band(some, every):
            return "empty" if not some else "full" if every else "partial"

        if self.name == "full":
            return "full"
        if self.name == "causal":
            return band(k0 <= q1, k1 <= q0)
        if self.name == "before":
            return band(k0 < q1, k1 < q0)
        if self.name == "local":
            return band(k0 <= q1 and q0 < k1 + n[0], k1 <= q0 and q1 - k0 < n[0])
        if self.name == "strided":
            return band(k0 <= q1, n[0] == 1 and k1 <= q0)
        if self.name == "block":
            return band(
                k0 <= q1 and q0 // n[0] <= k1 // n[0] and k0 // n[0] <= q1 // n[0],
                k1 <= q0 and k0 // n[0] == q1 // n[0] and q0 // n[0] == k1 // n[0],
            )
        if self.name == "summary":
            first = n[0] - n[1]
            some = k1 - k0 + 1 >= n[0] or any(j % n[0] >= first for j in range(k0, k1 + 1))
            every = k1 - k0 + 1 <= n[1] and all(j % n[0] >= first for j in range(k0, k1 + 1))
            return band(some and k0 <= q1, k1 <= q0 and every)
        return band(bool(self.allows(head, q1, k0)), bool(self.allows(head, q0, k1)))


class Union:
    def __init__(self, a, b):
        self.parts, self.kinds = (a, b), int(np.lcm(a.kinds, b.kinds))

    def allows(self, head, i, j):
        return self.parts[0].allows(head, i, j) | self.parts[1].allows(head, i, j)

    def coverage(self, head, q, k):
        of = {p.coverage(head, q, k) for p in self.parts}
        return "full" if "full" in of else "empty" if of == {"empty"} else "partial"


class PerHead:
    def __init__(self, *parts):
        self.parts, self.kinds = parts, len(parts)

    def allows(self, head, i, j):
        return self.parts[head % self.kinds].allows(head, i, j)

    def coverage(self, head, q, k):
        return self.parts[head % self.kinds].coverage(head, q, k)


class Shifted:
    """Queries from a global position on."""

    def __init__(self, part, offset):
        self.part, self.offset, self.kinds = part, offset, part.kinds

    def allows(self, head, i, j):
        return self.part.allows(head, i + self.offset, j)

    def coverage(self, head, q, k):
        return self.part.coverage(head, (q[0] + self.offset, q[1] + self.offset), k)


class Packed:
    """Columns of a pattern next to each other: x is position x % length of column x // length."""

    def __init__(self, part, queries, keys):
        self.part, self.queries, self.keys, self.kinds = part, queries, keys, part.kinds

    def allows(self, head, i, j):
        own = i // self.queries == j // self.keys
        return own & self.part.allows(head, i % self.queries, j % self.keys)

    def coverage(self, head, q, k):
        some = (
            q[0] // self.queries <= (k[1] - 1) // self.keys
            and k[0] // self.keys <= (q[1] - 1) // self.queries
        )
        return "partial" if some else "empty"


class Masks:
    """Bit masks of 64x64 pairs, kept once each: [by query, by key][64][2] words."""

    def __init__(self):
        self.known, self.words = {}, []

    def number(self, allowed):
        key = np.packbits(allowed).tobytes()
        if key not in self.known:
            self.known[key] = len(self.words)
            both = np.stack([allowed, allowed.T])
            self.words.append(np.packbits(both, axis=-1, bitorder="little").view(np.uint32).ravel())
        return self.known[key]

    def table(self):
        return np.stack(self.words) if self.words else np.zeros((1, 256), np.uint32)


def units(pattern, head, queries, keys, steps, masks):
    """{(query unit, key unit): code} of what is kept. A unit without a pair is left out."""
    out, (q_step, k_step) = {}, steps
    k_units = -(-keys // k_step)

    def span(unit, count, step, size):
        return unit * step, min((unit + count) * step, size)

    def walk(u, first, last):
        q, k = span(u, 1, q_step, queries), span(first, last - first, k_step, keys)
        cover = pattern.coverage(head, q, k)
        whole = k_step == UNIT and k[1] == last * k_step
        if cover == "empty":
            return
        if cover == "full" and whole:
            out.update({(u, c): FULL for c in range(first, last)})
        elif last - first > 1:
            middle = (first + last) // 2
            walk(u, first, middle)
            walk(u, middle, last)
        else:
            allowed = np.zeros((UNIT, UNIT), bool)
            i, j = np.arange(*q)[:, None], np.arange(*k)[None, :]
            allowed[: i.size, : j.size] = pattern.allows(head, i, j)
            if allowed[: i.size].all():
                out[u, first] = FULL
            elif allowed.any():
                out[u, first] = masks.number(allowed)

    for u in range(-(-queries // q_step)):
        walk(u, 0, k_units)
    return out


def lists(kept, count, other, per_tile, transposed):
    """`first`, `entries` and `order` of a launch whose tiles are `per_tile` units of one side.

    That side has `count` units; `kept` is one dict of `units` for each kind of head.
    """
    tiles = -(-count // per_tile)
    first, entries, order = [0], [], []
    for of in kept:
        rows = [{} for _ in range(tiles)]
        for (q, k), code in of.items():
            own, far = (k, q) if transposed else (q, k)
            rows[own // per_tile].setdefault(far, [EMPTY, EMPTY])[own % per_tile] = code
        cost = []
        for row in rows:
            for far in sorted(row):
                entries.append((far, *row[far], 0))
            first.append(len(entries))
            cost.append(sum(code != EMPTY for pair in row.values() for code in pair))
        order += sorted(range(tiles), key=lambda t: -cost[t])
    array = np.array(entries or [(0, 0, 0, 0)], np.uint32)
    assert array[:, 0].max() < other
    return np.array(first, np.uint32), array, np.array(order, np.uint32), tiles


# Flags of attend_band's visits
QUERY_FIRST, QUERY_LAST, QUERY_OWN, KEY_OWN, KEY_FIRST, KEY_LAST = (1 << b for b in range(8, 14))


def band(kept, query_units, key_units, length):
    """Lists of attend_band for stretches of `length` units, as `lists`, and the slots it takes."""
    tiles = -(-max(query_units, key_units) // length)
    first, entries, order, slots = [0], [], [], 1
    for of in kept:
        by_query, by_key, cost = {}, {}, []
        for (q, k), code in of.items():
            by_query.setdefault(q, []).append((k, q, code))
            by_key.setdefault(k, []).append((k, q, code))
        for tile in range(tiles):
            own = range(tile * length, (tile + 1) * length)
            visits = set()
            for u in own:
                visits.update(by_query.get(u, [(0, u, EMPTY)] if u < query_units else []))
                visits.update(by_key.get(u, [(u, 0, EMPTY)] if u < key_units else []))
            visits, free, held = sorted(visits), list(range(256)), {}
            last_of = {q: n for n, (_, q, _) in enumerate(visits)}
            for n, (k, q, code) in enumerate(visits):
                flags = KEY_OWN if k in own else 0
                flags |= KEY_FIRST if n == 0 or visits[n - 1][0] != k else 0
                flags |= KEY_LAST if n + 1 == len(visits) or visits[n + 1][0] != k else 0
                if q in own:
                    flags |= QUERY_OWN | (0 if q in held else QUERY_FIRST)
                    slot = held.setdefault(q, free[0])
                    free = [x for x in free if x != slot]
                    slots, flags = max(slots, slot + 1), flags | slot
                    if last_of[q] == n:
                        flags |= QUERY_LAST
                        free = sorted([*free, held.pop(q)])
                entries.append((k, code, q, flags))
            first.append(len(entries))
            cost.append(len(visits))
        order += sorted(range(tiles), key=lambda t: -cost[t])
    arrays = (np.array(x, np.uint32) for x in (first, entries, order))
    return (*arrays, tiles, slots)
