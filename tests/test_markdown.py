import pytest

from pipeline.markdown import table


def test_a_table_has_a_head_a_rule_and_a_line_a_row():
    assert table(["net", "images"], [["fcn8s", 100], ["fcn16s", 7]]) == (
        "| net | images |\n| --- | --- |\n| fcn8s | 100 |\n| fcn16s | 7 |"
    )


def test_a_row_with_a_cell_too_few_is_our_own_mistake():
    with pytest.raises(AssertionError):
        table(["net", "images"], [["fcn8s"]])
