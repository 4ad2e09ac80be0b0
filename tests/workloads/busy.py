"""busy.py SECONDS: Python in Python, and Python in extensions written in C."""

import hashlib
import json
import re
import sys
import time
import zlib


class Node:
    def __init__(self, depth):
        self.children = [Node(depth - 1) for _ in range(2)] if depth else []

    def total(self):
        return 1 + sum(child.total() for child in self.children)


def pure():
    return Node(8).total() + sum(i * i for i in range(20000))


def extensions():
    document = json.dumps([{"id": i, "name": f"name {i}", "tags": ["a", "b"]} for i in range(500)])
    decoded = json.loads(document)
    words = re.findall(r"(\w+) (\d+)", document)
    digest = hashlib.sha256(document.encode() * 10).hexdigest()
    packed = zlib.compress(document.encode() * 4)
    decoded.sort(key=lambda entry: entry["name"])
    return len(words) + len(digest) + len(packed)


deadline = time.monotonic() + float(sys.argv[1])
while time.monotonic() < deadline:
    pure()
    extensions()
