"""The web page and API of `fcn serve`."""
