import pytest

from pipeline.download.mirror import shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/path/file.tar", "https://host/path/file.tar"),
        ("https://host:8080/path?token=x", "https://host:8080/path"),
        ("https://user@host/path#x", "https://host/path"),
        ("https://user:word@host/path", "https://host/path"),
        ("https://user:w/o?r#d@host/path", "https://host/path"),
        ("user:word@host/path", "host/path"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, expected: str):
    assert shown(url) == expected
