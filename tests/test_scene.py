import re

import k3d
import pytest

from hamr_lib.errors import HamrError
from hamr_lib.render.viewer3d import COMPRESSION, write_html


def test_a_page_is_k3ds_own_but_for_its_title(tmp_path):
    def untitled(page):
        return re.sub("<title>.*?</title>", "", page)

    for places in ([[0, 0, 1]], [[1, 0, 0], [0, 2, 0]]):
        plot = k3d.plot(height=300)
        plot += k3d.points(places)
        write_html(tmp_path / "a.html", plot, "<A hand>")
        page = (tmp_path / "a.html").read_text()
        assert "<title>&lt;A hand&gt;</title>" in page
        assert untitled(page) == untitled(plot.get_snapshot(COMPRESSION))


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(HamrError, match="a.htm: expected a name that ends in .html"):
        write_html(tmp_path / "a.htm", k3d.plot(), "A hand")
