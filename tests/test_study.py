"""The runner of the notebooks, and the whole study under the `smoke` profile."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from hamr_lib import study
from hamr_lib.config import load_settings
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import scores
from hamr_lib.files import ROOT, write_json


def make(*arguments):
    """Run make in the project as a reader would, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def one_notebook(tmp_path, monkeypatch):
    """A folder of notebooks with a single one in it, and results beside it."""
    monkeypatch.setattr(study, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(study, "ROOT", tmp_path)

    def write(code, name="99_probe"):
        first = nbformat.v4.new_code_cell('profile = ""', metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(code)])
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["kernelspec"] = kernel
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        return tmp_path / "results" / "smoke" / f"{name}.ipynb"

    return write


def test_a_notebook_runs_on_this_interpreter_with_its_parameters_and_is_timed(
    one_notebook, tmp_path, monkeypatch
):
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec = {"argv": ["/bin/false"], "display_name": "foreign", "language": "python"}
    write_json(kernel, spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    left = tmp_path / "results" / "smoke" / "runs" / f".last.{dead.pid}.part.ckpt"
    own = left.with_name(f".log.{os.getpid()}.part.csv")
    write_json(left, "of a killed run")
    write_json(own, "of a run that goes on")
    drawn = "import matplotlib.pyplot as plt; plt.plot([0, 1]); plt.show()"
    out = one_notebook(f"import sys; print(profile, sys.executable); {drawn}")
    study.execute("smoke", "99_probe", out, {})
    cells = nbformat.read(out, as_version=4).cells
    assert cells[-1].outputs[0].text == f"smoke {sys.executable}\n"
    assert "image/jpeg" in cells[-1].outputs[1].data  # small
    assert own.is_file() and not left.exists()
    run = json.loads((out.parent / "run.json").read_text())
    assert [step["step"] for step in run["steps"]] == ["99_probe"]
    assert run["steps"][0]["machine"] == study.machine()
    assert run["settings"] == load_settings("smoke").to_dict()


def test_a_finished_training_keeps_its_time_when_its_notebook_is_executed_again(one_notebook):
    """20 steps of 8 images at 4 images a second, then 10 steps at 2: 40 + 40 seconds."""
    out = one_notebook("profile", "02_train")
    log = study.results_dir("smoke", "main") / "log.csv"

    def execute(text):
        """Executed with a log.csv of this text as what the notebook leaves."""
        code = f"import pathlib; log = pathlib.Path({str(log)!r})\n"
        code += f"log.parent.mkdir(parents=True, exist_ok=True); log.write_text({text!r})"
        study.execute("smoke", "02_train", one_notebook(code, "02_train"), {})
        return json.loads((out.parent / "run.json").read_text())["steps"]

    first = execute("step,images_per_second\n20,4\n30,2\n")
    assert first[0]["training"] == {"steps": 30, "seconds": 80.0}
    assert execute("step,images_per_second\n20,4\n30,2\n") == first
    longer = execute("step,images_per_second\n20,4\n30,2\n40,8\n")
    assert longer[0]["training"] == {"steps": 40, "seconds": 90.0}


@pytest.mark.parametrize(
    "code, complaint",
    [
        ("raise ValueError('the reason')", "failed in cell .*the reason"),
        ("import os; os._exit(7)", "the kernel ended"),
    ],
)
def test_a_failing_notebook_leaves_no_result(one_notebook, code, complaint):
    out = one_notebook(code)
    with pytest.raises(HamrError, match=f"99_probe.ipynb:? {complaint}"):
        study.execute("smoke", "99_probe", out, {})
    assert [path.name for path in out.parent.iterdir()] == ["99_probe.failed.ipynb"]


HOSTILE = ["", "../hamr_lib", "smoke /", "%", "#", "smoke;touch X", "$(shell touch X)", "`touch X`",
           "$$(touch X)", "smoke\nX", "a'b", 'a"b', "smoke)", "smoke\\"]  # fmt: skip


@pytest.mark.parametrize("goal, way", [("clean", "argument"), ("reproduce", "environment")])
def test_only_the_name_of_a_profile_reaches_a_shell(tmp_path, goal, way):
    """Under make -n, which also runs every `$(shell ...)`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "notebooks" / "profiles", tmp_path / "notebooks" / "profiles")
    for name in HOSTILE:
        environment = {**os.environ, **({"PROFILE": name} if way == "environment" else {})}
        command = ["make", "--no-print-directory", "-n", goal]
        command += [f"PROFILE={name}"] if way == "argument" else []
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode != 0 and "expected one of" in done.stderr, name
        assert done.stdout == "" and not (tmp_path / "X").exists(), name


def test_cleaning_removes_what_a_profile_made_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "notebooks" / "profiles", tmp_path / "notebooks" / "profiles")
    made = {
        "smoke": ["results/smoke/run.json", "data/open/smoke/open-rhd/x.png"],
        "reference": ["results/reference-run/run.json", "data/open/reference/open-rhd/x.png"],
    }
    kept = ["results/reference/model.pt", "results/cpu/run.json", "data/raw/x", "data/cache/x",
            "data/open/cpu/x", "notebooks/profiles/smoke.yaml"]  # fmt: skip
    for name in [*kept, *made["smoke"], *made["reference"]]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for profile, gone in made.items():
        subprocess.run(["make", "clean", f"PROFILE={profile}"], cwd=tmp_path, check=True)
        assert not any((tmp_path / name).exists() for name in gone)
    assert all((tmp_path / name).is_file() for name in kept)


@pytest.mark.parametrize(
    "profile, notebook, parameters, complaint",
    [
        ("smok", "99_probe", {}, "profile 'smok'"),
        ("smoke", "98_none", {}, "98_none.ipynb does not exist"),
        ("smoke", "99_probe", {"pofile": "x"}, "parameter of 99_probe.ipynb 'pofile'"),
        ("smoke", "99_probe", {"run": "no-mush-s0"}, "variant 'no-mush'"),
        ("smoke", "99_probe", {"method": "magic"}, "method 'magic'"),
    ],
)
def test_nothing_starts_on_a_misspelt_name(one_notebook, profile, notebook, parameters, complaint):
    out = one_notebook("print()")
    with pytest.raises(HamrError, match=complaint):
        study.execute(profile, notebook, out, parameters)
    assert not out.exists()


def test_ablations_need_runs_of_their_own_and_not_the_main_one():
    asked = make("--dry-run", "--always-make", "ablations", "PROFILE=paper")
    trained = re.findall(r"02_train results/paper/(\S*)02_train.ipynb", asked)
    expected = study.ablation_runs(load_settings("paper"))
    assert sorted(trained) == sorted(f"runs/{run}/" for run in expected)


@pytest.mark.parametrize("jobs, threads", [("-j3", "2"), ("-j16", "1"), ("-k", "")])
def test_runs_side_by_side_share_the_cores(jobs, threads):
    """What a recipe's shell makes of its line, on a machine of eight cores."""
    asked = make("--dry-run", "--always-make", "ablations", "PROFILE=paper", "CORES=8", jobs)
    line = next(line for line in asked.splitlines() if "02_train" in line)
    before = line.partition(" -m hamr_lib")[0].rpartition(" ")[0]  # the name of the interpreter
    shell = f"{before}; echo $OMP_NUM_THREADS"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    told = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == threads


def test_a_study_of_ablations_alone_is_published(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    with pytest.raises(HamrError, match="holds neither 03_evaluate.ipynb nor 04_ablations.ipynb"):
        study.publish("smoke")
    source, target = (tmp_path / "results" / name for name in ("smoke", "reference/smoke"))
    run, tables = source / "runs" / "full-s0", source / "tables"
    run.mkdir(parents=True)
    tables.mkdir()
    row = {"dataset": "open-rhd", "method": "full", "metric": "auc_3d", "value": 0.25}
    scores.write_rows(run / "metrics.csv", pd.DataFrame([row], columns=scores.COLUMNS))
    (tables / "claims.md").write_text("| it holds |\n")
    for name in ("run.json", "04_ablations.ipynb"):
        (source / name).write_text(f"{tmp_path}/data")
    pages = [tmp_path / "README.md", tmp_path / "docs" / "results.md"]
    pages[1].parent.mkdir()
    marked = "a\n<!-- claims of {} -->{}<!-- end -->\nb <!-- other of smoke -->{}<!-- end -->"
    for page in pages:
        page.write_text(marked.format("smoke", "old", "") + marked.format("gpu", "x", ""))

    study.publish("smoke")
    names = ["04_ablations.ipynb", "metrics.csv", "run.json", "tables"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert (target / "04_ablations.ipynb").read_text() == "data"  # no path of this machine
    rows = scores.read_rows(target / "metrics.csv")
    assert rows[rows.source != "published"]["value"].tolist() == [0.25]
    not_run = "\nNot run.\n"
    filled = marked.format("smoke", "\n| it holds |\n", not_run) + marked.format(
        "gpu", "x", not_run
    )
    assert all(page.read_text() == filled for page in pages)


def without_a_picture(results):
    """The cells of executed notebooks that draw a figure and do not show it."""
    found = []
    for path in results.glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            shown = [output.get("data", {}) for output in cell.get("outputs", ())]
            source = "".join(cell["source"])
            if source.startswith("figures.") and not any("image/jpeg" in data for data in shown):
                found.append((path.name, source))
    return found


@pytest.mark.slow
def test_the_method_needs_no_data_and_draws_each_of_its_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    out = study.results_dir("smoke") / "00_method.ipynb"
    study.execute("smoke", "00_method", out, {})
    cells = nbformat.read(out, as_version=4).cells
    outputs = [one for cell in cells if cell.cell_type == "code" for one in cell.outputs]
    assert not [one for one in outputs if one.get("name") == "stderr"]
    assert sum("image/jpeg" in one.get("data", {}) for one in outputs) >= 12
    texts = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert [f"tag{{{n}}}" in texts for n in ("1", "2", "3", "4-5", "6", "7", "8")] == [True] * 7


@pytest.mark.slow
def test_the_whole_study_and_that_a_second_call_runs_nothing():
    make("reproduce", "PROFILE=smoke")
    results = ROOT / "results" / "smoke"
    expected = ["metrics.csv", "run.json", "tables/table1.csv"]
    expected += [f"0{n}_*.ipynb" for n in range(7)]
    expected += [f"figures/fig{n}_*.{kind}" for n in (4, 6, 8) for kind in ("pdf", "png", "csv")]
    missing = [name for name in expected if not list(results.glob(name))]
    assert not missing
    assert without_a_picture(results) == []
    times = {path: path.stat().st_mtime_ns for path in results.rglob("*.ipynb")}
    assert "[smoke]" not in make("reproduce", "PROFILE=smoke")
    printed = make("ablations", "PROFILE=smoke")
    assert "| the paper says " in printed and "[smoke]" not in printed
    assert times == {path: path.stat().st_mtime_ns for path in results.rglob("*.ipynb")}


@pytest.mark.slow
def test_torchrun_trains_a_run_that_the_notebook_finds_done():
    """Two processes share every batch."""
    make("data", "PROFILE=smoke")  # there already, after the study above
    run = study.results_dir("smoke", "no-camera-s7")
    shutil.rmtree(run, ignore_errors=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc-per-node=2", "-m", "hamr_lib.study", "train", "smoke", "no-camera-s7"]
    done = subprocess.run([*launcher, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    log = (run / "log.csv").read_text()
    assert len(log.splitlines()) == 2  # the names, and the validation after six steps
    study.train("smoke", "no-camera-s7")
    assert (run / "log.csv").read_text() == log
    shutil.rmtree(run)
