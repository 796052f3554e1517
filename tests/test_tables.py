"""Tables from saved results: their numbers, their three formats, and their words."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from saved_results import SETTINGS, drawn_sets, evaluate_oracle

from hamr_lib.evaluation import protocols, scores
from hamr_lib.files import write_json
from hamr_lib.report import figures, tables
from hamr_lib.report import results as saved


def test_a_table_is_written_three_times_and_split_by_a_column(tmp_path):
    table = pd.DataFrame({"data set": ["RHD", "STB"], "b_c": ["1 & 2 %", None], "d": [None, "3"]})
    tables.write_table(table, tmp_path, "speed", by="data set", machines="a_b")
    first, second = (tmp_path / "speed.md").read_text().split("**STB**")
    assert first.startswith("**RHD**") and " b_c " in first and " d " not in first
    assert " d " in second and " b_c " not in second and second.endswith("make bench`, on a_b.\n")
    latex = (tmp_path / "speed.tex").read_text()
    assert r"1 \& 2 \%" in latex and r"b\_c" in latex and latex.count(r"\begin{table}") == 2
    assert r"\caption{STB. Measured by `make bench`, on a\_b.}" in latex
    read = pd.read_csv(tmp_path / "speed.csv")
    assert list(read) == ["data set", "b_c", "d"] and list(read["b_c"]) == ["1 & 2 %", "-"]


def test_a_stand_in_is_said_to_be_one(results):
    for draw, name in ((tables.headline, "headline"), (tables.literature, "published")):
        draw(results)
        texts = [(results / "tables" / f"{name}.{suffix}").read_text() for suffix in ("md", "tex")]
        assert [("rendered stand-ins" in text) for text in texts] == 2 * [name == "headline"]


def test_results_are_the_measured_rows_of_the_study(results):
    table = tables.results(results).set_index(["data set", "method"])
    assert set(table.index.levels[1]) == {"HAMR (this study)", "mean pose", "untrained network"}
    rows = scores.read_rows(results / "metrics.csv").query("method == 'main'")
    rows = rows.set_index(["dataset", "metric"])
    assert (table.loc["open-dexter"]["3-D PCK AUC, hand3d's protocol"] == "-").all()  # no palm
    for dataset in ("open-stb", "open-rhd"):
        shown = table.loc[(dataset, "HAMR (this study)")]
        for column, metric in (("our reading", "auc"), ("hand3d's protocol", "auc_hand3d")):
            row = rows.loc[(dataset, metric)]
            expected = f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
            assert shown[f"3-D PCK AUC, {column}"] == expected


def test_table_1_keeps_measured_and_published_apart(results):
    table = tables.table1(results)
    measured, literature = table[table.source == "measured"], table[table.source == "published"]
    assert set(measured["data set"]) == {"open-rhd"} and set(literature["data set"]) == {"RHD"}
    assert literature.set_index("method")["mIoU"]["HAMR"] == "0.931"
    assert "[" in measured["mIoU"].iloc[0] and "[" not in literature["mIoU"].iloc[0]
    assert list(table.source) == sorted(table.source)  # two blocks, not mixed


def test_the_protocol_matrix(results):
    table = tables.protocols(results).set_index("protocol")
    names = [p.name for p in protocols.protocol_matrix()]
    assert list(table.index) == names and len(set(names)) == len(names)
    assert table["open-dexter"][protocols.PAPER.name] == "-"  # it labels no wrist
    assert table["open-dexter"][protocols.TIPS.name] != "-"
    assert table["open-stb, SK camera"][protocols.BIHAND.name] != "-"
    # Alignment by a similarity can only help, on the same thresholds.
    best = protocols.Protocol(root="centroid", scale="procrustes").name
    areas = [float(table["open-rhd"][name].split()[0]) for name in (best, protocols.PAPER.name)]
    assert areas[0] > areas[1]


def test_ablations_with_their_paired_differences(results):
    table = tables.ablations(results, SETTINGS)
    assert list(table.columns[-2:]) == ["3-D AUC minus the full model's", "of each seed"]
    one = table[table["data set"] == "open-rhd"].set_index("method")
    assert list(one.index) == ["full model", "without mesh", "without camera loss"]
    assert one["of each seed"]["full model"] == "-"
    gap = [float(one["3-D PCK AUC"][m].split()[0]) for m in ("without mesh", "full model")]
    shown = float(one["3-D AUC minus the full model's"]["without mesh"].split()[0])
    assert shown == pytest.approx(gap[0] - gap[1], abs=1.1e-3) and shown < 0
    seeds = [float(each) for each in one["of each seed"]["without mesh"].split(",")]
    assert len(seeds) == 2 and np.mean(seeds) == pytest.approx(shown, abs=1.1e-3)
    assert one["mIoU"]["without mesh"] == "-"
    assert "over images and 2 seeds" in (results / "tables" / "ablations.md").read_text()


def test_claims_and_choices_say_what_the_ablations_show(results, tmp_path):
    """From runs of ablations alone. Those without mesh and camera loss are noisier than the full
    model's; there are none without the other two parts. A choice is given the runs of no-camera,
    and one as good as the full model those of that model."""
    (tmp_path / "runs").mkdir()
    runs = {"full": "full", "no-mesh": "no-mesh", "no-camera": "no-camera", "pose-12": "no-camera",
            "no-silhouette": "full"}  # fmt: skip
    for seed in SETTINGS.study.ablation_seeds:
        for name, run in runs.items():
            run = results / "runs" / f"{run}-s{seed}"
            (tmp_path / "runs" / f"{name}-s{seed}").symlink_to(run)
    study = replace(SETTINGS.study, ablations=tuple(runs)[1:])
    settings = replace(SETTINGS, study=study)
    table = tables.claims(tmp_path, settings).set_index("the paper says")
    names = ["the mesh helps a lot", "the camera loss helps", "the silhouette loss helps"]
    assert list(table.index) == names
    sets = "open-stb, open-rhd, open-dexter"
    assert list(table.verdict) == [f"holds on {sets}"] * 2 + [f"undecided on {sets}"]
    gains = saved.differences(saved.variant_runs(tmp_path, settings), "full", settings)
    camera = gains.set_index(["method", "dataset"]).loc["no-camera", "open-rhd"]
    assert camera.ci_high < 0
    shown = table["open-rhd, without it"]
    assert shown.iloc[1].startswith(f"worse: {camera.difference:+.3f} [{camera.ci_low:+.3f}, ")
    assert shown.iloc[2].startswith("no clear difference: ")
    assert "rendered stand-ins" in (tmp_path / "tables" / "claims.md").read_text()
    choice = tables.choices(tmp_path, settings).set_index("choice")
    assert list(choice.index) == ["12 pose components"]
    assert list(choice) == [f"{s}, with it" for s in sets.split(", ")]
    assert (choice.values == table.iloc[[1], 1:].values).all()
    assert tables.choices(results, SETTINGS).empty
    assert not (results / "tables" / "choices.md").exists()


def test_comparisons_with_their_paired_differences(results):
    table = tables.comparisons(results, SETTINGS).set_index(["data set", "method"])
    for method in ("mean pose", "untrained network"):
        row = table.loc["open-stb", method]
        assert float(row["3-D AUC of ours minus it"].split()[0]) > 0.1 and float(row["p"]) < 0.05
    assert not (results / "tables" / "methods.csv").exists()


def test_comparisons_against_hamr_of_the_same_budget(results, tmp_path):
    """With its costs, and a method of masks alone, which has a row only where there are masks."""
    (tmp_path / "runs").symlink_to(results / "runs")
    others = tmp_path / "comparisons"
    shutil.copytree(results / "comparisons", others)
    sets = drawn_sets(tmp_path / "cache", SETTINGS)
    evaluate_oracle(others / "hamr", sets, SETTINGS, "hamr", noise=0.02)
    evaluate_oracle(others / "deeplab", sets, SETTINGS, "deeplab", noise=0.0, joints=False)
    cost = {"parameters": 1_250_000, "gflop": 2.5, "ms_an_image": 12.34}
    about = {"method": "hamr", "reference": "this study", "deviations": "Ours.", "steps": 8}
    write_json(others / "hamr" / "cost.json", cost)
    write_json(others / "hamr" / "about.json", about)
    (others / "hamr" / "log.csv").write_text("step,images_per_second\n4,32\n8,64\n")
    table = tables.comparisons(tmp_path, SETTINGS)
    rhd = table[table["data set"] == "open-rhd"].set_index("method")
    names = ["HAMR, same budget", "DeepLab", "mean pose", "untrained network"]
    assert list(rhd.index) == ["HAMR (this study)", *names]
    shown = rhd["3-D AUC of HAMR, same budget minus it"]
    assert shown["HAMR, same budget"] == "-" and float(shown["HAMR (this study)"].split()[0]) < 0
    deeplab = rhd.loc["DeepLab"]
    assert deeplab["3-D PCK AUC"] == deeplab["p"] == "-" and float(deeplab["mIoU"].split()[0]) > 0.5
    assert "DeepLab" not in set(table[table["data set"] == "open-stb"].method)
    written = pd.read_csv(tmp_path / "tables" / "methods.csv")
    assert list(written.method) == ["HAMR, same budget"] and list(written.deviations) == ["Ours."]
    costs = ["parameters (M)", "GFLOP an image", "fit (s)", "ms an image"]
    seconds = round(SETTINGS.train.batch_size * (4 / 32 + 4 / 64))
    assert written[costs].to_numpy().tolist() == [[1.25, 2.5, seconds, 12.3]]
    scores.merge_metrics(tmp_path)
    masks = tables.table1(tmp_path).query("source == 'measured'").set_index("method")["mIoU"]
    assert masks["DeepLab"] == deeplab["mIoU"]


def test_differences_along_the_training_are_paired_by_sample_and_seed(tmp_path):
    """no-mesh learns later and ends equal; no-camera stays 5 mm worse for one seed in two."""
    rng, steps = np.random.default_rng(0), np.array([250, 500, 750])
    for seed in SETTINGS.study.ablation_seeds:
        full = 50 - steps[:, None] / 50 + rng.normal(0, 8, (3, 60 + seed))
        full[:, 3] = np.nan
        shift = {"full": [0, 0, 0], "no-mesh": [10, 4, 0], "no-camera": [5 * seed] * 3}
        for variant, more in shift.items():
            folder = tmp_path / "runs" / f"{variant}-s{seed}"
            folder.mkdir(parents=True)
            noise = rng.normal(0, 1, full.shape)
            error = full + np.array(more)[:, None] + (variant != "full") * noise
            np.savez(folder / "validation.npz", step=steps, error=error)
    found = saved.differences_along(tmp_path, SETTINGS).set_index(["variant", "step"])
    for step, more in zip(steps, (10, 4, 0), strict=True):
        row = found.loc["no-mesh", step]
        # The samples differ by 8 mm, their differences by 1.
        assert row.difference == pytest.approx(more, abs=0.4)
        assert row.ci_low <= more + 0.3 and row.ci_high >= more - 0.3
        assert row.ci_high - row.ci_low < 1
        assert row.full == pytest.approx(50 - step / 50, abs=2)
    # Two seeds that disagree: the interval reaches from one to the other.
    row = found.loc["no-camera", 750]
    assert row.difference == pytest.approx(2.5, abs=0.4)
    assert row.ci_low < 0.5 and row.ci_high > 4.5
    table = tables.along_training(tmp_path, SETTINGS)
    assert list(table.columns) == ["mm", "250 steps", "500 steps", "750 steps"]
    assert table["mm"].tolist() == ["full model", "without mesh", "without camera loss"]
    assert float(table["250 steps"][1].split()[0]) == pytest.approx(10, abs=0.4)
    fig = figures.along_training(tmp_path, SETTINGS)
    drawn = [ax.get_lines()[-1].get_ydata() for ax in fig.axes]
    np.testing.assert_allclose(drawn, found.difference.to_numpy().reshape(2, 3))


def test_time_is_that_of_the_steps(tmp_path):
    rate = SETTINGS.train.batch_size  # images a second
    log = pd.DataFrame({"step": [60, 120], "images_per_second": [rate, rate / 2],
                        "val_joints_3d_mm": [50, 40], "train_total": [5, 4],
                        "val_total": [6, 5]})  # fmt: skip
    run = tmp_path / "runs" / "main"
    run.mkdir(parents=True)
    log.to_csv(run / "log.csv", index=False)
    table = tables.time_to_accuracy(tmp_path, SETTINGS)
    assert list(table["training (minutes)"]) == ["1.0", "3.0"]  # a step a second, then two seconds
    assert list(table["mean 3-D error, validation (mm)"]) == ["50.0", "40.0"]
    drawn = figures.training_curves(run / "log.csv").axes[1].get_lines()[0]
    assert list(drawn.get_ydata()) == [50, 40] and (run / "training.pdf").is_file()
