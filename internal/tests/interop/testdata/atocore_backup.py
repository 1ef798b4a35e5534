"""A stand-in for the backup module of the Python AtoCore, for tests.

It reads and writes the snapshots that AtoCore does, with the same fields and
the same checks, on the same standard library calls. Each line of standard
input is a call, and the answer is a line of standard output, all in JSON:

    ["create", BACKUP_DIR, DATABASE, REGISTRY, CHROMA, TIME, WITH_CHROMA]
    ["list", BACKUP_DIR]
    ["validate", BACKUP_DIR, STAMP]

TIME is in ISO 8601.
"""

import contextlib
import datetime
import json
import pathlib
import shutil
import sqlite3
import sys

METADATA = "backup-metadata.json"


def create(backup_dir, database, registry, chroma, time, with_chroma):
    made = datetime.datetime.fromisoformat(time)
    root = pathlib.Path(backup_dir, "snapshots", made.strftime("%Y%m%dT%H%M%SZ"))
    database, registry, chroma = map(pathlib.Path, (database, registry, chroma))
    copies = {"db": root / "db" / database.name, "registry": root / "config" / registry.name}
    for copy in copies.values():
        copy.parent.mkdir(parents=True, exist_ok=True)

    with contextlib.closing(sqlite3.connect(str(database))) as live:
        with contextlib.closing(sqlite3.connect(str(copies["db"]))) as copy:
            live.backup(copy)
    has_registry = registry.exists()
    if has_registry:
        # As text, which makes every end of a line a newline.
        copies["registry"].write_text(registry.read_text(encoding="utf-8"), encoding="utf-8")
    sizes, chroma_copy = [], ""
    if with_chroma and chroma.is_dir():
        chroma_copy = str(shutil.copytree(chroma, root / "chroma"))
        sizes = [file.stat().st_size for file in (root / "chroma").rglob("*") if file.is_file()]

    metadata = dict(
        created_at=made.isoformat(),
        backup_root=str(root),
        db_snapshot_path=str(copies["db"]),
        db_size_bytes=copies["db"].stat().st_size,
        registry_snapshot_path=str(copies["registry"]) if has_registry else "",
        chroma_snapshot_path=chroma_copy,
        chroma_snapshot_bytes=sum(sizes),
        chroma_snapshot_files=len(sizes),
        chroma_snapshot_included=with_chroma,
        vector_store_note="with the vector store" if chroma_copy else "without the vector store",
    )
    text = json.dumps(metadata, indent=2, ensure_ascii=True)
    (root / METADATA).write_text(text + "\n", encoding="utf-8")
    return metadata


def list_all(backup_dir):
    snapshots = pathlib.Path(backup_dir, "snapshots")
    if not snapshots.is_dir():
        return []
    found = []
    for snapshot in sorted(entry for entry in snapshots.iterdir() if entry.is_dir()):
        file = snapshot / METADATA
        entry = dict(stamp=snapshot.name, path=str(snapshot), has_metadata=file.exists())
        if entry["has_metadata"]:
            try:
                entry["metadata"] = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                entry.update(metadata=None, metadata_error="invalid_json")
        found.append(entry)
    return found


def check_database(path):
    if not path.exists():
        return "db_snapshot_missing"
    try:
        # For writing, and left to the garbage collector to close, as AtoCore
        # does: until then a WAL database has a -wal and a -shm beside it.
        with sqlite3.connect(str(path)) as db:
            first = db.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        return f"db_open_failed: {error}"
    return None if first == ("ok",) else f"db_integrity_check_failed: {first}"


def check_registry(path):
    if not path.exists():
        return "registry_snapshot_missing"
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return f"registry_invalid_json: {error}"
    return None


def check_chroma(path):
    return None if path.is_dir() else "chroma_snapshot_missing"


def validate(backup_dir, stamp):
    snapshot = pathlib.Path(backup_dir, "snapshots", stamp)
    result = dict(stamp=stamp, path=str(snapshot), exists=snapshot.exists(), db_ok=False,
                  registry_ok=None, chroma_ok=None, errors=[])
    if not snapshot.exists():
        return dict(result, errors=["snapshot_directory_missing"])
    if not (snapshot / METADATA).exists():
        return dict(result, errors=["metadata_missing"])
    try:
        metadata = json.loads((snapshot / METADATA).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return dict(result, errors=[f"metadata_invalid_json: {error}"])
    result["metadata"] = metadata
    for part, check in dict(db=check_database, registry=check_registry, chroma=check_chroma).items():
        # The recorded path, wherever the snapshot is by now.
        recorded = metadata.get(part + "_snapshot_path", "")
        if recorded or part == "db":
            error = check(pathlib.Path(recorded))
            result[part + "_ok"] = error is None
            if error:
                result["errors"].append(error)
    return dict(result, valid=not result["errors"])


COMMANDS = dict(create=create, list=list_all, validate=validate)

if __name__ == "__main__":
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(COMMANDS[command](*arguments)), flush=True)
