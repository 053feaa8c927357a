from tests.photo_net import nan_model, net  # noqa: F401  # fixtures
