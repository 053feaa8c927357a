"""Published scores, to compare runs with. Numbers are percent, as printed; None where the source has none."""

from dataclasses import dataclass

CVPR = "Long, Shelhamer, Darrell, CVPR 2015"
# sha256 of the reference release's data/pascal/seg11valid.txt: VOC2011's val without SBD's train, 736 images
SEG11VALID = "4ca991bd72c251fd2485eaa9e29536502ea3800d1b1c17c151fd6a04bcfbc2cc"
NAMES = {SEG11VALID: "seg11valid"}  # of published lists of images, by their digest


@dataclass(frozen=True)
class Published:
    """One published row of scores.

    name: of the net.
    split: the evaluation images, in the authors' words.
    source: the publication and its table.
    keys_sha256: digest_of_keys (shards/sample.py) of the split; None if its labels are on VOC's server only, or if the
        authors do not give the list.
    """

    name: str
    split: str
    source: str
    mean_iu: float
    pixel_acc: float | None = None
    mean_acc: float | None = None
    fw_iu: float | None = None
    keys_sha256: str | None = None


def _table_2(name: str, pixel_acc: float, mean_acc: float, mean_iu: float, fw_iu: float) -> Published:
    return Published(
        name, "seg11valid", f"{CVPR}, table 2", mean_iu, pixel_acc, mean_acc, fw_iu, keys_sha256=SEG11VALID
    )


def _reference(name: str, mean_iu: float) -> Published:
    source = "shelhamer/fcn.berkeleyvision.org, README"
    return Published(name, "seg11valid", source, mean_iu, keys_sha256=SEG11VALID)


def _test(name: str, year: int, mean_iu: float) -> Published:
    return Published(name, f"VOC{year} test", f"{CVPR}, table 3", mean_iu)


def _table_1(name: str, mean_iu: float) -> Published:
    return Published(name, "VOC2011 val", f"{CVPR}, table 1", mean_iu)


PUBLISHED = (
    _table_2("FCN-32s-fixed", 83.0, 59.7, 45.4, 72.0),
    _table_2("FCN-32s", 89.1, 73.3, 59.4, 81.4),
    _table_2("FCN-16s", 90.0, 75.7, 62.4, 83.0),
    _table_2("FCN-8s", 90.3, 75.9, 62.7, 83.2),
    _reference("FCN-32s, released", 63.6),
    _reference("FCN-16s, released", 65.0),
    _reference("FCN-8s, released", 65.5),
    _reference("FCN-8s at-once, released", 65.4),
    _reference("FCN-AlexNet, released", 48.0),
    _test("R-CNN", 2011, 47.9),
    _test("SDS", 2011, 52.6),
    _test("SDS", 2012, 51.6),
    _test("FCN-8s", 2011, 62.7),
    _test("FCN-8s", 2012, 62.2),
    _table_1("FCN-AlexNet", 39.8),
    _table_1("FCN-VGG16", 56.0),
    _table_1("FCN-GoogLeNet", 42.5),
)
