#!/usr/bin/env python3
"""Packs folders of raw captures into tests/captures/<case>.gz; README.md beside this file describes the format.

Usage: pack.py FOLDER_OF_RAW_CAPTURES
"""

import gzip
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


def pack(case: pathlib.Path) -> bytes:
    meta = json.loads((case / "meta.json").read_text())
    connections, data = [], b""
    for number in range(1, len(meta["connections"]) + 1):
        client = (case / f"conn-{number}.client.bin").read_bytes()
        server = (case / f"conn-{number}.server.bin").read_bytes()
        timeline = json.loads((case / f"conn-{number}.timeline.json").read_text())
        connections.append({
            "client": len(client),
            "server": len(server),
            "pieces": [[piece["dir"], piece["len"]] for piece in timeline["chunks"]],
            "ends": [[end["dir"], end["how"]] for end in timeline["ends"]],
        })
        data += client + server
    head = {
        "case": meta["case"],
        "note": meta["note"],
        "client": meta["client"],
        "apiserver": meta["apiserver"],
        "recorded": meta["recorded"],
        "connections": connections,
    }
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + data


def main() -> None:
    for case in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        if (case / "meta.json").exists():
            # No time of day in the file: packing the same capture again changes nothing.
            (HERE / f"{case.name}.gz").write_bytes(gzip.compress(pack(case), 9, mtime=0))


main()
