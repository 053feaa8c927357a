import pytest

from pipeline.tables import as_html, table


def test_a_table_has_a_head_a_rule_and_a_line_a_row():
    assert table(["net", "images"], [["fcn8s", 100], ["fcn16s", 7]]) == (
        "| net | images |\n| --- | --- |\n| fcn8s | 100 |\n| fcn16s | 7 |"
    )


def test_a_row_with_a_cell_too_few_is_our_own_mistake():
    with pytest.raises(AssertionError):
        table(["net", "images"], [["fcn8s"]])


def test_a_bar_in_a_cell_divides_no_cells_neither_as_text_nor_as_html():
    text = table(["class"], [["a|b"], ["c"]])
    assert text == "| class |\n| --- |\n| a\\|b |\n| c |"
    assert '<th scope="row">a|b</th>' in as_html(text)


def test_paragraphs_lists_tables_and_bold_become_html_and_all_else_stays_text():
    html = as_html(
        "Some <b>words</b> & **bold** ones.\n\n* one\n* <two>\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    )
    assert html.startswith(
        "<p>Some &lt;b&gt;words&lt;/b&gt; &amp; <strong>bold</strong> ones.</p>\n"
        "<ul><li>one</li><li>&lt;two&gt;</li></ul>\n<table>"
    )
    assert '<tr><th scope="row">1</th><td>2</td></tr>' in html
