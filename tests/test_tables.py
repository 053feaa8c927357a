import pytest

from pipeline.tables import FORMATS, Table, render

TABLE = Table(["net", "images"], [["fcn8s", 100], ["a|<b>", 7]], ["A & note."])


def test_a_plain_table_has_aligned_columns_and_its_notes_below():
    assert render(["Words.", TABLE], "plain").splitlines() == [
        "Words.",
        "",
        "net    images",
        "fcn8s  100",
        "a|<b>  7",
        "",
        "A & note.",
    ]


def test_a_bar_in_a_cell_does_not_divide_a_markdown_cell():
    head, rule, first, second = render([Table(["net", "a|b"], TABLE.rows)], "markdown").splitlines()
    assert set(rule) == {"|", "-"}
    assert [cell.strip() for cell in first.split("|")] == ["", "fcn8s", "100", ""]
    assert r"a\|b" in head
    assert r"a\|<b>" in second


def test_html_escapes_cells_and_paragraphs():
    page = render(["1 < 2", TABLE], "html")
    assert "<p>1 &lt; 2</p>" in page
    assert "<tr><td>a|&lt;b&gt;</td><td>7</td></tr>" in page
    assert "<p>A &amp; note.</p>" in page
    assert page.count("<tr>") == page.count("</tr>") == 3


def test_numbers_are_shown_as_they_are_written():
    for form in FORMATS:
        assert "0.50" in render([Table(["score"], [["0.50"], ["12"]])], form)


def test_a_row_with_a_cell_too_few_and_an_unknown_format_are_mistakes_of_the_caller():
    with pytest.raises(AssertionError):
        render([Table(["net", "images"], [["fcn8s"]])], "plain")
    with pytest.raises(ValueError, match="latex"):
        render([TABLE], "latex")
