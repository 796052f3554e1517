"""The table of deviations: complete, reasoned, and as committed."""

import pytest

from hamr_lib.config import load_settings
from hamr_lib.errors import HamrError
from hamr_lib.report import deviations


@pytest.fixture
def by_profile():
    return {name: deviations.flat(load_settings(name)) for name in deviations.SHOWN}


def test_the_committed_page_is_what_the_settings_say(by_profile):
    command = "python -m hamr_lib.report.deviations"
    assert deviations.PAGE.read_text() == deviations.page(by_profile), f"run {command}"


def test_a_runs_differences_are_what_it_changes():
    """And the paper profile departs in no setting that the paper gives."""
    assert deviations.differences(load_settings("paper")).empty
    table = deviations.differences(load_settings("paper", train__clip=2.0))
    assert table.values.tolist() == [["gradient clipping", "none", "2"]]


def test_a_deviation_without_a_reason_is_refused(by_profile):
    by_profile["cpu"]["train.plateau_factor"] = 0.5
    with pytest.raises(HamrError, match="profile cpu: train.plateau_factor=0.5.* 0.7: .*a reason"):
        deviations.page(by_profile)


@pytest.mark.parametrize("name, problem", [("model.wings", "has no row"), (None, "is no setting")])
def test_every_setting_is_classified(by_profile, name, problem):
    for values in by_profile.values():
        if name:
            values[name] = 2
        else:
            del values["train.clip"]
    with pytest.raises(HamrError, match=f"{name or 'train.clip'} {problem}"):
        deviations.page(by_profile)


def test_a_row_shows_the_value_the_reason_and_the_variant_that_goes_back(by_profile):
    text = deviations.page({"cpu": by_profile["cpu"], "paper": by_profile["paper"]})
    (row,) = [line for line in text.splitlines() if "`model.rotation`" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["axis-angle (3.1)", "6d", "="]
    assert cells[4].startswith(deviations.GIVEN["model.rotation"]["reason"])
    assert cells[4].endswith("Variant `axis-angle`.")
    # Variance 2.5 on 64 pixels: 1.58 of 64; on 16 pixels four times as wide.
    assert by_profile["paper"][deviations.WIDTH] == 2.5
    small = load_settings("paper", model__image_size=64)
    assert deviations.flat(small)[deviations.WIDTH] == 9.9
