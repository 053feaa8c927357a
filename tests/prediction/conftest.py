from tests.photo_net import model, nan_model, net, onnx  # noqa: F401  # fixtures
