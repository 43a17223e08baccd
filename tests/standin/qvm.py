# SPDX-License-Identifier: GPL-3.0-or-later
"""
Stands for Qubes' Salt module `qvm` where there is no dom0: the machine's qubes are a file, /qvm.json.

Owns what our states use of it, with the same arguments. What it does not know it refuses, and a qube that is not there
cannot be changed. Must not know which states there are.
"""

import json
from pathlib import Path
from typing import Any

MACHINE = Path("/qvm.json")
# In this order, unless `actions` says otherwise, as Qubes' module has them.
ACTIONS = ("shutdown", "absent", "present", "prefs", "features", "tags")


def vm(name: str, actions: list[Any] | None = None, **given: list[Any]) -> dict[str, Any]:
    """The state qvm.vm: each action with its list of arguments."""
    qubes: dict[str, Any] = json.loads(MACHINE.read_text(encoding="utf-8")) if MACHINE.exists() else {}
    before = json.dumps(qubes, sort_keys=True)
    order = [next(iter(one)) if isinstance(one, dict) else one for one in actions or ACTIONS]
    faults = [f"unknown action {action}" for action in given if action not in order or action not in ACTIONS]
    for action in order:
        if action in given and not faults:
            fault = _do(qubes, name, action, given[action])
            faults += [fault] if fault else []
    changed = json.dumps(qubes, sort_keys=True) != before
    if not faults:
        MACHINE.write_text(json.dumps(qubes), encoding="utf-8")
    changes = {name: "changed"} if changed and not faults else {}
    return {"name": name, "result": not faults, "changes": changes, "comment": "; ".join(faults)}


def _do(qubes: dict[str, Any], name: str, action: str, arguments: list[Any]) -> str:
    """One action; what is wrong with it."""
    if action == "present":
        if name not in qubes:
            qubes[name] = {"prefs": {key: value for one in arguments for key, value in one.items()}}
    elif action == "absent":
        qubes.pop(name, None)
    elif action != "shutdown" and name not in qubes:
        return f"there is no qube {name}"
    elif action == "prefs":
        for one in arguments:
            qubes[name]["prefs"].update(one)
    elif action in {"features", "tags"}:
        return _words(qubes[name], action, {how: words for one in arguments for how, words in one.items()})
    return ""


def _words(qube: dict[str, Any], key: str, wanted: dict[str, list[str]]) -> str:
    more, less = ("enable", "disable") if key == "features" else ("add", "del")
    if wanted.keys() - {more, less}:
        return f"unknown: {wanted}"
    words = sorted({*qube.get(key, []), *wanted.get(more, [])} - {*wanted.get(less, [])})
    qube[key] = words
    return ""
