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
        ["serve", "a.pt", "--allowed-host", "https://segment.example.org"],
        ["serve", "a.pt", "--allowed-host", "example.org:8443"],
        ["serve", "a.pt", "--allowed-host", "example.org/segment"],
    ],
)
def test_a_value_that_the_option_cannot_have_is_refused_naming_option_and_value(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2
    option, _, value = (
        arguments[-1].partition("=") if "=" in arguments[-1] else (arguments[-2], "", arguments[-1])
    )
    message = capsys.readouterr().err.splitlines()[-1]
    assert option in message
    assert repr(value) in message


def test_a_proxy_may_have_a_name_or_an_address():
    names = ["segment.example.org", "203.0.113.5", "fd00::1", "bücher.example", "my_host"]
    options = [part for name in names for part in ("--allowed-host", name)]
    assert parser().parse_args(["serve", "a.pt", *options]).allowed_host == names
