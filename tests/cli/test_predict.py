"""Options of `fcn predict`, `fcn serve` and `fcn submit`."""

import pytest

from pipeline.cli.main import parser


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.pt", "a.jpg", "--output", "o", "--tile", "0"],
        ["predict", "a.pt", "a.jpg", "--output", "o", "--tile", "many"],
        ["serve", "a.pt", "--port", "70000"],
        ["serve", "a.pt", "--waiting=-1"],
        ["serve", "a.pt", "--max-mb", "0"],
    ],
)
def test_a_number_out_of_bounds_is_refused_naming_option_and_value(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2
    option, _, value = (
        arguments[-1].partition("=") if "=" in arguments[-1] else (arguments[-2], "", arguments[-1])
    )
    message = capsys.readouterr().err.splitlines()[-1]
    assert option in message
    assert repr(value) in message
