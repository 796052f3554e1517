"""Tables from saved results: their numbers, their three formats, and their words."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from saved_results import SETTINGS, drawn_sets, evaluate_oracle, make_results

from hamr_lib.evaluation import protocols, scores
from hamr_lib.files import write_json
from hamr_lib.report import results as saved
from hamr_lib.report import tables


def test_a_table_is_written_three_times_and_split_by_a_column(tmp_path):
    table = pd.DataFrame({"data set": ["RHD", "STB"], "b_c": ["1 & 2 %", None], "d": [None, "3"]})
    tables.write_table(table, "What it is, in %.", tmp_path, "small", by="data set")
    first, second = (tmp_path / "small.md").read_text().split("**STB**")
    assert first.startswith("**RHD**") and " b_c " in first and " d " not in first
    assert " d " in second and " b_c " not in second and second.endswith("What it is, in %.\n")
    latex = (tmp_path / "small.tex").read_text()
    assert r"1 \& 2 \%" in latex and r"b\_c" in latex and latex.count(r"\begin{table}") == 2
    assert r"\caption{STB. What it is, in \%.}" in latex
    read = pd.read_csv(tmp_path / "small.csv")
    assert list(read) == ["data set", "b_c", "d"] and list(read["b_c"]) == ["1 & 2 %", "-"]


def test_a_stand_in_is_said_to_be_one(results):
    for draw in (tables.results, tables.table1, tables.protocols):
        draw(results)
    for name in ("results", "table1", "protocols"):
        for suffix in ("md", "tex"):
            text = (results / "tables" / f"{name}.{suffix}").read_text()
            assert "rendered stand-ins" in text
    tables.literature(results)
    assert "stand-in" not in (results / "tables" / "published.md").read_text()


def test_results_are_the_measured_rows_of_the_study(results):
    table = tables.results(results)
    assert set(table.method) == {"HAMR (this study)", "mean pose", "untrained network"}
    rows = scores.read_rows(results / "metrics.csv")
    row = rows.query("method == 'main' and dataset == 'open-rhd' and metric == 'auc'").iloc[0]
    cell = table[(table.method == "HAMR (this study)") & (table["data set"] == "open-rhd")]
    expected = f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
    assert cell["3-D PCK AUC, our reading"].item() == expected
    hand3d = table.set_index(["data set", "method"])["3-D PCK AUC, hand3d's protocol"]
    assert (hand3d["open-dexter"] == "-").all()  # it labels no palm
    for dataset in ("open-stb", "open-rhd"):
        found = rows.query(
            f"method == 'main' and dataset == '{dataset}' and metric == 'auc_hand3d'"
        )
        assert hand3d[dataset, "HAMR (this study)"].startswith(f"{found.value.item():.3f} [")
        assert found.protocol.item().startswith("hand3d's: 3-D, 20-50 mm cut from 0-50 in 20")


def test_table_1_keeps_measured_and_published_apart(results):
    table = tables.table1(results)
    measured, literature = table[table.source == "measured"], table[table.source == "published"]
    assert set(measured["data set"]) == {"open-rhd"} and set(literature["data set"]) == {"RHD"}
    assert literature.set_index("method")["mIoU"]["HAMR"] == "0.931"
    assert "[" in measured["mIoU"].iloc[0] and "[" not in literature["mIoU"].iloc[0]
    assert list(table.source) == sorted(table.source)  # two blocks, not mixed


def test_the_protocol_matrix(results):
    table = tables.protocols(results)
    assert list(table.protocol) == [p.name for p in protocols.protocol_matrix()]
    by_name = table.set_index("protocol")
    assert by_name["open-dexter"][protocols.PAPER.name] == "-"  # it labels no wrist
    assert by_name["open-dexter"][protocols.TIPS.name] != "-"
    assert by_name["open-stb, SK camera"][protocols.BIHAND.name] != "-"


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


def test_claims_say_what_the_ablations_show(results):
    """The saved runs without mesh and camera loss are noisier than the full model's; there are
    none without the other two parts."""
    table = tables.claims(results, SETTINGS).set_index("the paper says")
    assert list(table.index) == ["the mesh helps a lot", "the camera loss helps"]
    assert list(table) == [f"open-{s}, without it" for s in ("stb", "rhd", "dexter")]
    gains = saved.ablation_differences(results, SETTINGS)
    camera = gains[(gains.variant == "no-camera") & (gains.dataset == "open-rhd")].iloc[0]
    assert camera.ci_high < 0
    shown = table["open-rhd, without it"]["the camera loss helps"]
    assert "rendered stand-ins" in (results / "tables" / "claims.md").read_text()
    assert shown.startswith(f"worse: {camera.difference:+.3f} [{camera.ci_low:+.3f}, ")


def test_choices_are_what_the_paper_makes_no_claim_of(results):
    """The runs of no-camera stand in for those of another variant."""
    assert tables.choices(results, SETTINGS).empty
    assert not (results / "tables" / "choices.md").exists()
    runs = results / "runs"
    for seed in SETTINGS.study.ablation_seeds:
        shutil.copytree(runs / f"no-camera-s{seed}", runs / f"pose-12-s{seed}")
    study = replace(SETTINGS.study, ablations=("no-camera", "pose-12"))
    table = tables.choices(results, replace(SETTINGS, study=study)).set_index("choice")
    assert list(table.index) == ["12 pose components"]
    assert list(table) == [f"open-{s}, with it" for s in ("stb", "rhd", "dexter")]
    claimed = tables.claims(results, SETTINGS).set_index("the paper says")
    assert (table.values == claimed.loc[["the camera loss helps"]].values).all()


def test_comparisons_with_their_paired_differences(results):
    table = tables.comparisons(results, SETTINGS)
    one = table[table["data set"] == "open-stb"].set_index("method")
    assert list(one.index) == ["HAMR (this study)", "mean pose", "untrained network"]
    shown = one["3-D AUC of ours minus it"]
    assert float(shown["mean pose"].split()[0]) > 0.1 and float(one["p"]["mean pose"]) < 0.05
    assert not (results / "tables" / "methods.csv").exists()


def test_comparisons_against_hamr_of_the_same_budget(tmp_path):
    """With its costs, and a method of masks alone, which has a row only where there are masks."""
    make_results(tmp_path, SETTINGS)
    others = tmp_path / "comparisons"
    sets = drawn_sets(tmp_path / "cache", SETTINGS)
    evaluate_oracle(others / "hamr", sets, SETTINGS, "hamr", noise=0.02)
    evaluate_oracle(others / "deeplab", sets, SETTINGS, "deeplab", noise=0.0, joints=False)
    write_json(others / "hamr" / "cost.json", {
        "parameters": 1_250_000, "gflop": 2.5, "ms_an_image": 12.34, "batch_size": 4,
        "device": "cpu", "commit": "abc",
    })  # fmt: skip
    write_json(others / "hamr" / "about.json", {
        "method": "hamr", "reference": "this study", "deviations": "Ours.", "steps": 8,
    })  # fmt: skip
    (others / "hamr" / "log.csv").write_text("step,images_per_second\n4,32\n8,64\n")
    table = tables.comparisons(tmp_path, SETTINGS)
    rhd = table[table["data set"] == "open-rhd"].set_index("method")
    assert list(rhd.index) == [
        "HAMR (this study)", "HAMR, same budget", "DeepLab", "mean pose", "untrained network",
    ]  # fmt: skip
    costs = ["parameters (M)", "GFLOP an image", "fit (s)", "ms an image"]
    seconds = SETTINGS.train.batch_size * (4 / 32 + 4 / 64)
    shown = rhd["3-D AUC of HAMR, same budget minus it"]
    assert shown["HAMR, same budget"] == "-" and float(shown["HAMR (this study)"].split()[0]) < 0
    deeplab = rhd.loc["DeepLab"]
    assert deeplab["3-D PCK AUC"] == deeplab["p"] == "-" and float(deeplab["mIoU"].split()[0]) > 0.5
    assert "DeepLab" not in set(table[table["data set"] == "open-stb"].method)
    about = pd.read_csv(tmp_path / "tables" / "methods.csv")
    assert list(about.method) == ["HAMR, same budget"] and list(about.deviations) == ["Ours."]
    assert about[costs].to_numpy().tolist() == [[1.25, 2.5, round(seconds), 12.3]]
    scores.merge_metrics(tmp_path)
    masks = tables.table1(tmp_path).query("source == 'measured'").set_index("method")["mIoU"]
    assert masks["DeepLab"] == deeplab["mIoU"]
