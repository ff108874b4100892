"""Finds, in the syntax of a source file, what could run code that came with data."""

import ast
from collections.abc import Iterator

# Not even to be named: an alias, or a function handed on, would be called elsewhere.
FORBIDDEN = {
    "builtins": {"eval", "exec", "compile", "__import__"},
    "pickle": {"load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"},
    "_pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads", "CloudUnpickler"},
    "dill": {"load", "loads", "Unpickler", "load_module", "load_session"},
    "marshal": {"load", "loads"},
    "shelve": {"open", "Shelf", "DbfilenameShelf"},
    "joblib": {"load"},
    "pandas": {"read_pickle"},
    "yaml": {
        *("unsafe_load", "unsafe_load_all", "full_load", "full_load_all"),
        *("Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader"),
    },
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "stable_baselines3.common.save_util": {"load_from_zip_file", "load_from_pkl", "json_to_data"},
}
SHELLS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
YAML = {"yaml.load", "yaml.load_all"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}
# To be called with care, and never named otherwise.
CAREFUL = {*SHELLS, *YAML, "torch.load", "torch.serialization.load", "numpy.load"}


def unsafe(source: str) -> list[tuple[int, str]]:
    """Finds them.

    Args:
        source: Of a module.

    Returns:
        Line and dotted name of each.
    """
    tree = ast.parse(source)
    names = dict(_imported(tree))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    called |= {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)
    }  # types
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ImportFrom):
            found += [(line, f"{node.module}.*") for a in node.names if _hides(node.module, a.name)]
        if isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node, names)
            module, _, last = name.rpartition(".")
            if last in FORBIDDEN.get(module, ()) or (name in CAREFUL and id(node) not in called):
                found.append((line, name))
        if isinstance(node, ast.Call):
            name = _dotted(node.func, names)
            if (name in CAREFUL and not _careful(name, node, names)) or _by_name(name, node, names):
                found.append((line, name))
    return sorted({*found})


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What local names stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, whole
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`torch.load` of `t.load` after `import torch as t`; empty for what is no plain name."""
    if isinstance(node, ast.Name):
        builtin = f"builtins.{node.id}" if node.id in FORBIDDEN["builtins"] else node.id
        return names.get(node.id, builtin)
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return before and f"{before}.{node.attr}"
    return ""


def _hides(module: str | None, name: str) -> bool:
    """Whether `from module import *` hides where names come from."""
    known = {*FORBIDDEN, *(whole.rpartition(".")[0] for whole in CAREFUL)}
    return name == "*" and module in known


def _careful(name: str, call: ast.Call, names: dict[str, str]) -> bool:
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in SHELLS:
        return _is(options.get("shell"), False) or not {"shell", None} & {*options}
    if name == "numpy.load":
        few = len(call.args) <= 2  # the third is allow_pickle
        return few and (
            _is(options.get("allow_pickle"), False) or not {"allow_pickle", None} & {*options}
        )
    if name in YAML:
        loader = options.get("Loader", call.args[1] if len(call.args) > 1 else ast.Constant(None))
        return _dotted(loader, names) in SAFE_LOADERS
    return _is(options.get("weights_only"), True)


def _by_name(name: str, call: ast.Call, names: dict[str, str]) -> bool:
    """Whether this is `getattr(pickle, …)` or `import_module("pickle")`."""
    if not call.args:
        return False
    if name == "getattr":
        return _dotted(call.args[0], names) in FORBIDDEN
    first = call.args[0]
    imports = name in ("importlib.import_module", "builtins.__import__")
    return imports and isinstance(first, ast.Constant) and first.value in FORBIDDEN


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
