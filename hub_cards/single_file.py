"""One file that holds a pipeline of the package and all that it needs of it, for repositories on the Hub.

    DiffusionPipeline.from_pretrained("owner/name", custom_pipeline="owner/name", trust_remote_code=True)

then works where bwm-pipelines is not installed, and everyone can read what the checkpoint is run with. The modules
stand one after the other, unchanged but for the imports from each other. diffusers asks for exactly one pipeline class
in the file, so the name of its base class is deleted in the end.
"""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "bwm_pipelines"
MODULE, BASE = "bwm_pipelines.pipelines.world_model", "CheckpointPipeline"
HEADER = f"""# Made by hub_cards.single_file from the modules of {PACKAGE}, which are in this order below. Do not edit.
# Licence of this file: Apache-2.0.
"""


def single_file(module: str = MODULE) -> str:
    """The source of a module of the package with that of all modules of the package that it imports, in one file.

    Raises:
        ValueError: two of the modules give one name to different things, or import each other in another way than
            `from module import name` at their top.
    """
    sources = {name: Path(find_spec(name).origin).read_text(encoding="utf-8") for name in _in_order(module, [])}
    imports, bodies, owners = set(), [], {}
    for name, source in sources.items():
        tree = ast.parse(source)
        cut = {line for node in tree.body if _is_import(node) for line in range(node.lineno, node.end_lineno + 1)}
        cut |= set(range(1, tree.body[0].end_lineno + 1)) if ast.get_docstring(tree) else set()
        lines = [line for number, line in enumerate(source.splitlines(), start=1) if number not in cut]
        bodies.append(f"# --- {name}: {ast.get_docstring(tree).partition(chr(10))[0]}\n\n" + "\n".join(lines).strip())
        imports |= {statement for node in tree.body if _is_import(node) for statement in _statements(node)}
        for defined in _defined(tree):
            if owners.setdefault(defined, name) != name:
                raise ValueError(f"{defined!r} is defined in {owners[defined]} and in {name}; rename one.")
    future = sorted(line for line in imports if line.startswith("from __future__"))
    rest = sorted(imports - set(future), key=lambda line: (line.split()[1], line))
    head = "\n".join([HEADER, *future, "", *rest])
    return "\n\n\n".join([head, *bodies, f"del {BASE}"]) + "\n"


def _in_order(module: str, found: list[str]) -> list[str]:
    """The modules of the package that one imports, and itself, each after those that it imports."""
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.startswith(PACKAGE) for alias in node.names):
            raise ValueError(f"{module} line {node.lineno} must read `from {PACKAGE}... import name`.")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            if node not in tree.body or any(alias.asname for alias in node.names):
                raise ValueError(f"{module} line {node.lineno} must stand at the top of the module, without `as`.")
            if node.module not in found:
                _in_order(node.module, found)
    found.append(module)
    return found


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _statements(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """An import as one statement a name; those from the package are left out."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield ast.unparse(ast.Import([alias]))
        elif node.module.split(".")[0] != PACKAGE:
            yield ast.unparse(ast.ImportFrom(node.module, [alias], 0))


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines at its top."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
