"""How large the project is, against the limits that keep it readable; `make lint` prints it.

python tests/limits.py            # print
python tests/limits.py --strict   # and exit with 1 if a limit is not held
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES = 400, 60


def tracked(*patterns):
    """Paths of the files under version control."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *patterns], capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def lines(paths):
    return {path: path.read_text().count("\n") for path in paths}


def long_functions(paths):
    """Names of the functions of more than `FUNCTION_LINES` lines."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES:
                    yield f"{path.relative_to(ROOT)}: {node.name}, {length}"


def import_circle(paths):
    """Names of modules that import one another in a circle, wherever in a file they do."""
    names = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    graph = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            found = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                deeper = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [one if one in names else node.module for one in deeper]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            graph[name] |= {one for one in found if one in names and one != name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def main():
    library, tests = tracked("hamr_lib/*.py"), tracked("tests/*.py")
    readme = ROOT / "README.md"
    sizes = {path: path.stat().st_size for path in tracked()}
    published = [size for path, size in sizes.items() if "results/reference" in str(path)]
    long_files = [
        f"{path.relative_to(ROOT)}, {count}"
        for path, count in lines(library + tests).items()
        if count > FILE_LINES
    ]
    circle = import_circle(library)
    rows = [  # what, how much, at most, which
        ("lines of README.md", lines([readme])[readme], 150, []),
        ("bytes of README.md", readme.stat().st_size, 10_000, []),
        ("lines of hamr_lib", sum(lines(library).values()), 11_500, []),
        ("lines of tests", sum(lines(tests).values()), 7_500, []),
        (f"files over {FILE_LINES} lines", len(long_files), 0, long_files),
        ("modules in an import circle", len(circle), 0, [" <- ".join(circle)] if circle else []),
        ("MB under version control", round(sum(sizes.values()) / 1e6, 1), 45, []),
        ("MB of results/reference", round(sum(published) / 1e6, 1), 30, []),
    ]
    held = True
    for what, found, limit, which in rows:
        held &= found <= limit
        print(f"{'' if found <= limit else 'OVER '}{what}: {found} of {limit}")
        for one in which:
            print(f"    {one}")
    for one in long_functions(library):
        print(f"a function over {FUNCTION_LINES} lines: {one}")
    return 0 if held or "--strict" not in sys.argv[1:] else 1


if __name__ == "__main__":
    sys.exit(main())
