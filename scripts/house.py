"""Counts how the package is built, and with --check fails where a limit is exceeded.

`make house` prints the table of docs/house.md; `--write` puts it there. A figure that grows past its limit is a reason to
look at the code, not to look for a trick: the limits are those of the small, readable servers this one is measured against.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "eardrum"
PAGE = ROOT / "docs" / "house.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"

SMALL = 80
"""Lines below which a file that only one other imports should be part of it."""

LONE: dict[str, str] = {
    "eardrum.api.key_scopes": "the table of rights, which operators and auditors read by itself",
    "eardrum.cli.keys": "a group of commands, as every module beside it",
}
"""Such files, and the reason why each stands alone."""

IRREGULAR = """
begun bound built cut done drawn driven found given gone heard held kept known laid led left lost made meant paid put read said
seen sent set shown shut sold split spent spoken spun taken taught thought thrown told understood woken won worn written
"""
VERBS = ("cut", "embed", "exceed", "feed", "need", "proceed", "put", "read", "seed", "set", "shut", "speed", "split", "succeed")
"""Words that look like participles and are verbs."""


@dataclass
class PackageCounts:
    """The package's declarations."""

    lines: dict[str, int] = field(default_factory=dict)
    imports: dict[str, set[str]] = field(default_factory=dict)
    """Modules of the package that a module imports, inside functions and for types too."""
    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    functions: list[tuple[str, str, int]] = field(default_factory=list)
    """Module, name and lines of each function that is neither a property nor special."""
    participles: list[str] = field(default_factory=list)
    docstrings: list[str] = field(default_factory=list)


def main() -> None:
    counts = count_package()
    rows = list(list_figures(counts))
    table = render_table(rows)
    print(table)
    if "--list" in sys.argv:
        list_offenders(counts)
    if "--write" in sys.argv:
        write_page(table)
    failed = [name for name, value, limit in rows if value > limit]
    if "--check" in sys.argv and failed:
        sys.exit("Over the limit: " + "; ".join(failed))


def count_package() -> PackageCounts:
    """Parse every module of the package once."""
    counts = PackageCounts()
    paths = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
    for module, path in paths.items():
        text = path.read_text()
        tree = ast.parse(text)
        counts.lines[module] = len(text.splitlines())
        counts.imports[module] = {found for node in ast.walk(tree) for found in imported_modules(node, paths)} - {module}
        if docstring := ast.get_docstring(tree):
            counts.docstrings.append(f"{module}: {docstring.splitlines()[0]}")
        count_definitions(counts, module, tree)
    return counts


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(node: ast.AST, paths: dict[str, Path]) -> set[str]:
    """The package's modules that an import statement names."""
    if isinstance(node, ast.Import):
        return {name.name for name in node.names} & paths.keys()
    if isinstance(node, ast.ImportFrom) and node.module:
        return {found for name in node.names for found in (f"{node.module}.{name.name}", node.module) if found in paths} - (
            {node.module} if all(f"{node.module}.{name.name}" in paths for name in node.names) else set()
        )
    return set()


def count_definitions(counts: PackageCounts, module: str, node: ast.AST, outer: str = "") -> None:
    """Count the definitions in a module, class or function. A class within another one goes by both names."""
    for child in ast.iter_child_nodes(node):
        documented = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (docstring := ast.get_docstring(child)):
            counts.docstrings.append(f"{module}: {docstring.splitlines()[0]}")
        if isinstance(child, ast.ClassDef):
            counts.classes[outer + child.name.strip("_")].append(module)
            count_definitions(counts, module, child, f"{outer}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("__"):
                decorators = {ast.unparse(decorator) for decorator in child.decorator_list}
                counts.functions.append((module, child.name, body_lines(child)))
                is_adjective = any("property" in text or text.endswith(".setter") for text in decorators)
                if not is_adjective and is_participle(child.name) and not returns_bool(child):
                    counts.participles.append(f"{module}: {child.name}")
            count_definitions(counts, module, child)
        else:
            count_definitions(counts, module, child)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the `def` to the end, without decorators and docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def is_participle(name: str) -> bool:
    """Whether a function's name begins with a past participle, as in `_said` or `parsed_body`."""
    word = name.strip("_").split("_")[0]
    return word not in VERBS and (word in IRREGULAR.split() or (word.endswith("ed") and len(word) > 3))


def returns_bool(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return function.returns is not None and ast.unparse(function.returns) == "bool"


def list_figures(counts: PackageCounts) -> list[tuple[str, float, float]]:
    """Name, value and limit of each figure."""
    sizes = [lines for _, _, lines in counts.functions]
    repeated = [name for name, modules in counts.classes.items() if len(modules) > 1]
    one_word = [name for name in counts.classes if is_one_word(name)]
    openings = [line for line in counts.docstrings if line.split(": ", 1)[1].startswith(("What", "Who"))]
    return [
        ("files", len(counts.lines), 295),
        ("longest file, lines", max(counts.lines.values()), 600),
        (f"files below {SMALL} lines that one other imports, without a reason", len(set(lone_files(counts)) - LONE.keys()), 0),
        ("the same, with a reason", len(LONE), 15),
        ("import cycles", len(import_cycles(counts.imports)), 0),
        ("class names in more than one module", len(repeated), 0),
        ("classes named by one word, %", round(100 * len(one_word) / len(counts.classes), 1), 35),
        ("functions named by a past participle, %", round(100 * len(counts.participles) / len(counts.functions), 1), 4),
        ("docstrings that begin with What or Who", len(openings), 5),
        ("function length, 90th percentile", quantiles(sizes, n=10)[8], 25),
        ("longest function, lines", max(sizes), 60),
        ("lines of import contracts", contract_lines(), 40),
    ]


def is_one_word(name: str) -> bool:
    return sum(letter.isupper() for letter in name) <= 1


def lone_files(counts: PackageCounts) -> list[str]:
    """Short modules that exactly one other imports."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module, imports in counts.imports.items():
        for imported in imports:
            importers[imported].add(module)
    return [
        module
        for module, lines in counts.lines.items()
        if lines < SMALL and len(importers[module]) == 1 and not (SOURCE.parent / Path(*module.split("."))).is_dir()
    ]


def import_cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, found by taking away whatever imports nothing that is left."""
    left = {module: set(names) & imports.keys() for module, names in imports.items()}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    used = {name for names in left.values() for name in names}
    rest = sorted(module for module in left if module in used)
    return [rest] if rest else []


def contract_lines() -> int:
    """Lines of the import-linter contracts in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    return sum(1 for line in text.partition("[[tool.importlinter.contracts]]")[2].splitlines() if line.strip())


def render_table(rows: list[tuple[str, float, float]]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| figure | value | limit |", "|---|---|---|"]
    lines += [f"| {name} | {value:g} | {limit:g} |" for name, value, limit in rows]
    return "\n".join(lines)


def write_page(table: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def list_offenders(counts: PackageCounts) -> None:
    """Print the names behind the figures."""
    print("\nclasses in several modules:", {name: modules for name, modules in counts.classes.items() if len(modules) > 1})
    print("\none word:", sorted(name for name in counts.classes if is_one_word(name)))
    print("\nparticiples:", counts.participles)
    print("\nWhat/Who:", [line for line in counts.docstrings if line.split(": ", 1)[1].startswith(("What", "Who"))])
    print("\nsmall and lone:", sorted(set(lone_files(counts)) - LONE.keys()))
    print("\ncycles:", import_cycles(counts.imports))
    print("\nlongest functions:", sorted(counts.functions, key=lambda found: -found[2])[:15])
    print("\nmost common:", Counter(name for _, name, _ in counts.functions).most_common(10))


if __name__ == "__main__":
    main()
