"""Run the notebooks in sequence: what the Makefile calls.

`python -m hamr_lib.study COMMAND PROFILE`, where COMMAND is

runs      check a profile and list its ablation runs
methods   list the comparisons that have a notebook run of their own
execute   NOTEBOOK OUT [name=value ...]: check settings and parameters, execute one notebook
train     [RUN]: train one network without a notebook, for torchrun to start in every process; the
          notebook then finds it done
publish   copy what a study shows to `results/reference/`, and its tables into the README and docs/
"""

import argparse
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from hamr_lib.config import Settings, load_comparison, load_run, load_settings
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, commit, read_json, remove_leftovers, write_aside, write_json
from hamr_lib.variants import FLOORS

NOTEBOOKS = ROOT / "notebooks"
# The packages whose versions decide a result.
PACKAGES = ("torch", "torchvision", "easypytorch3d", "deodr", "smplx", "anny", "lightning", "numpy")


def results_dir(profile: str, run: str | None = None) -> Path:
    """`results/<profile>`, or the folder of one of its runs ("main" or `<variant>-s<seed>`).

    `results/reference` holds what is published, so the profile of that name has another folder.
    """
    name = load_settings(profile).profile
    folder = ROOT / "results" / ("reference-run" if name == "reference" else name)
    return folder / "runs" / run if run else folder


def ablation_runs(settings: Settings) -> list[str]:
    """Name the runs behind Fig. 8, if any: the full model and each ablation, over the seeds."""
    study = settings.study
    variants = ("full", *study.ablations) if study.ablations else ()
    return [f"{variant}-s{seed}" for variant in variants for seed in study.seeds(variant)]


def comparison_runs(settings: Settings) -> list[str]:
    """Names of the comparisons that are run each in a notebook of its own."""
    apart = settings.study.comparisons if settings.study.comparisons_apart else ()
    return [method for method in apart if method not in FLOORS]


def execute(profile: str, notebook: str, out: Path, parameters: dict[str, str]) -> None:
    """Execute `notebooks/<notebook>.ipynb` into `out`, which appears only when it succeeded.

    A notebook that fails is left beside it as `<out>.failed.ipynb`, and the wall time of one that
    succeeds is added to the profile's `run.json`. The notebook gets `profile` and the `parameters`.

    Raises:
        HamrError: an unknown profile, setting, notebook or parameter, before anything runs; or
            the error of the cell that failed.
    """
    from hamr_lib.notebooks import run_notebook  # here, as other commands need no Jupyter

    load_run(profile, parameters.get("run", "main"))
    if "method" in parameters:
        load_comparison(profile, parameters["method"])
    for folder in (results_dir(profile), ROOT / "data" / "open" / load_settings(profile).profile):
        remove_leftovers(folder)
    source, out, started = NOTEBOOKS / f"{notebook}.ipynb", Path(out), time.time()
    failed = out.with_suffix(".failed.ipynb")
    print(f"[{profile}]", notebook, *parameters.values(), flush=True)
    with write_aside(out) as aside:
        try:
            run_notebook(source, aside, {"profile": profile, **parameters})
        except HamrError as error:
            if not aside.is_file():
                raise
            os.replace(aside, failed)
            raise HamrError(f"{error}\n(the notebook as far as it went: {failed})") from error
    failed.unlink(missing_ok=True)
    trained = _training(profile, notebook, parameters)
    _record(profile, out, time.time() - started, trained)


def train(profile: str, run: str = "main", minutes: float = float("inf")) -> None:
    """Train one run into its folder of the results, as `02_train` does, for at most `minutes`.

    Under torchrun each process calls this, and takes its part of every batch. The data must have
    been made before (`make data`): many processes would render it many times.
    """
    from hamr_lib.data.registry import training_crops
    from hamr_lib.hand.layer import hand_of
    from hamr_lib.training.loop import fit

    settings = load_run(profile, run)
    crops, hand = training_crops(settings), hand_of(settings.hand)
    fit(settings, results_dir(profile, run), *crops, hand, minutes=minutes)


def publish(profile: str) -> None:
    """Copy what a study shows to `results/reference/<profile>`, to be committed.

    The network becomes the package's own (`checkpoint.SHIPPED`), unless the profile is `smoke`, or
    another one while `reference` is published. The tables in the README and in `docs/`, each
    between its two marks, become this study's, and those "of bench" what `make bench` last wrote.
    The main run must be evaluated; a study of ablations alone has none.
    """
    from hamr_lib.evaluation.scores import merge_metrics
    from hamr_lib.model.checkpoint import SHIPPED, save_release
    from hamr_lib.report.style import shrink_png

    source, profile = results_dir(profile), load_settings(profile).profile
    target = ROOT / "results" / "reference" / profile
    evaluated = (source / "03_evaluate.ipynb").is_file()
    if not evaluated and not (source / "04_ablations.ipynb").is_file():
        raise HamrError(
            f"{source} holds neither 03_evaluate.ipynb nor 04_ablations.ipynb: "
            "`make evaluate` and `make ablations` write them"
        )
    merge_metrics(source)  # only the main run's evaluation and 06_figures do
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    # Names with a dot before them are what a killed run left half-written.
    notebooks = source.glob("[!.]*.ipynb")
    others = ("metrics.csv", "run.json", *(["gallery.html"] if evaluated else []))
    for path in (*notebooks, *(source / name for name in others)):
        # Paths start at the project, or at "~": which machine ran it tells nothing.
        text = path.read_text().replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")
        (target / path.name).write_text(text)
    for folder in ("tables", "figures"):
        if (source / folder).is_dir():  # figures come last
            shutil.copytree(source / folder, target / folder)
    for path in target.glob("figures/*.png"):
        shrink_png(path)
    if evaluated:
        main = source / "runs" / "main"
        shutil.copy(main / "log.csv", target)
        better = profile != "reference" and (target.parent / "reference").is_dir()
        if profile != "smoke" and not better:
            save_release(main / "checkpoints" / "best.ckpt", SHIPPED)

    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = with_tables(page.read_text(), profile, target / "tables")
        with write_aside(page) as aside:
            aside.write_text(with_tables(text, "bench", target.parent / "bench"))


def with_tables(text: str, profile: str, tables: Path) -> str:
    """Fill the marks `<!-- NAME of PROFILE -->` ... `<!-- end -->` of a text with `tables/NAME.md`.

    Where a study has no such table, the text between the marks becomes "Not run.".
    """

    def filled(mark):
        path = tables / f"{mark[1]}.md"
        table = path.read_text().strip() if path.is_file() else "Not run."
        return f"<!-- {mark[1]} of {profile} -->\n{table}\n<!-- end -->"

    return re.sub(f"<!-- (\\w+) of {profile} -->.*?<!-- end -->", filled, text, flags=re.DOTALL)


def _record(profile, out, seconds, trained):
    """Add a step to run.json, the union of one file a step, so that steps may go side by side.

    A notebook that is executed again finds its network trained: the step then keeps what it
    recorded when it trained.
    """
    folder = results_dir(profile)
    step = str(out.resolve().relative_to(folder).with_suffix(""))
    path = folder / "steps" / f"{step.replace('/', '.')}.json"
    if not trained or not path.is_file() or read_json(path).get("training") != trained:
        entry = {"step": step, "seconds": round(seconds, 1), "commit": commit()}
        entry |= {"machine": machine()} | ({"training": trained} if trained else {})
        write_json(path, entry)
    steps = [read_json(path) for path in sorted((folder / "steps").glob("*.json"))]
    about = {"profile": profile, "settings": load_settings(profile).to_dict()}
    write_json(folder / "run.json", {**about, "versions": versions(), "steps": steps})


def _training(profile, notebook, parameters):
    """Steps and seconds of training alone that log.csv tells of; None for a step without one."""
    from hamr_lib.report.results import read_log

    if notebook == "02_train":
        run = parameters.get("run", "main")
        folder, settings = results_dir(profile, run), load_run(profile, run)
    elif "method" in parameters:
        folder = results_dir(profile) / "comparisons" / parameters["method"]
        settings = load_comparison(profile, parameters["method"])
    else:
        return None
    if not (folder / "log.csv").is_file():
        return None
    last = read_log(folder / "log.csv", settings).iloc[-1]
    return {"steps": int(last.step), "seconds": round(float(last.seconds), 1)}


def machine() -> dict:
    """What the measurements were taken on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu, listed = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if listed.is_file() and (name := re.search("^model name.*?: *(.+)", listed.read_text(), re.M)):
        cpu = name[1].strip()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpu": gpu, "os": platform.system()}


def versions() -> dict[str, str | None]:
    """Python's and the packages' versions, None where one is not installed."""
    found = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line described at the top; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hamr_lib.study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, function):
        added = commands.add_parser(name)
        added.set_defaults(function=function)
        added.add_argument("profile")
        return added

    command("runs", lambda profile: print(*ablation_runs(load_settings(profile))))
    command("methods", lambda profile: print(*comparison_runs(load_settings(profile))))
    command("publish", publish)
    training = command("train", train)
    training.add_argument("run", nargs="?", default="main")
    training.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    executing = command("execute", execute)
    executing.add_argument("notebook")
    executing.add_argument("out", type=Path)
    executing.add_argument("parameters", nargs="*", metavar="name=value")
    asked = vars(parser.parse_args(argv))
    if "parameters" in asked:
        pairs = [pair.partition("=") for pair in asked["parameters"]]
        asked["parameters"] = {name: value for name, _, value in pairs}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        asked.pop("function")(**asked)
    except HamrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
