"""Tiles of large images: for every net, the scores are those of the whole image, also at its border."""

import pytest
import torch

from fcn.model import BACKBONES, FCN
from pipeline.errors import UserError
from pipeline.models.tiles import Overlap, overlap, tiles_of

NETS = [
    *(
        {"stride": stride, "padding": padding, "width": 0.03, "fc6_kernel": 3}
        for stride in (32, 8)
        for padding in ("reference", "tight")
    ),
    {"stride": 16, "padding": "tight", "width": 0.03, "fc6_kernel": 3, "fusion": "max"},
    {"backbone": "alexnet", "stride": 16, "width": 0.05},
    {"backbone": "caffenet", "stride": 8, "width": 0.05},
    {"backbone": "googlenet", "stride": 8, "width": 0.05},
    {"backbone": "mobilenet_v1", "stride": 8, "width": 0.05},
    {"backbone": "resnet50", "stride": 8, "width": 0.03},
]


@pytest.mark.parametrize("options", NETS, ids=lambda net: " ".join(map(str, net.values())))
def test_tiles_give_the_scores_of_the_whole_image(options):
    torch.manual_seed(0)
    net = FCN(num_classes=3, score_init="random", **options).double().eval()
    around = overlap(net)
    side = 2 * around.margin + 2 * around.stride + 5
    height, width = side + 3, side + around.margin + 17
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    joined, num_tiles = torch.full((1, 3, height, width), torch.nan, dtype=torch.double), 0
    with torch.inference_mode():
        expected = net(image)
        for rows, columns in tiles_of(height, width, side, around):
            score = net(image[:, :, rows.first : rows.last, columns.first : columns.last])
            region = slice(rows.start, rows.end), slice(columns.start, columns.end)
            joined[:, :, *region] = score[:, :, rows.used, columns.used]
            num_tiles += 1
    assert num_tiles >= 4
    assert expected.std() > 0
    torch.testing.assert_close(joined, expected, rtol=0, atol=float(1e-9 * expected.abs().max()))


def test_the_overlap_of_vgg16_is_half_its_field_and_the_reach_of_its_upsamplings():
    """PAMI: 404 pixels up to fc6. A bilinear kernel reaches less than a cell: 32, then 16, then 8 pixels."""
    with torch.device("meta"):
        assert overlap(FCN(stride=32)) == Overlap(32, 256)  # 202 + 32 = 234
        assert overlap(FCN(stride=8)) == Overlap(32, 288)  # 202 + 32 + 16 + 8 = 258


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tiles_of_the_default_side_compute_a_pixel_at_most_three_times(backbone):
    with torch.device("meta"):
        around = overlap(FCN(stride=8, backbone=backbone))
    side = around.default_side
    length = 10 * side
    tiles = list(tiles_of(length, length, side, around))
    num_run = sum((rows.last - rows.first) * (columns.last - columns.first) for rows, columns in tiles)
    assert num_run <= 3 * length**2
    assert max(rows.last - rows.first for rows, _ in tiles) <= side


@pytest.mark.parametrize("length", [*range(1, 12), 13, 31, 32, 33, 64, 100, 257])
def test_every_pixel_is_used_once_and_far_enough_from_the_ends_of_its_tile(length):
    around, side = Overlap(2, 4), 11
    used = []
    for rows, columns in tiles_of(length, 5, side, around):
        assert columns == (0, 5, 0, 5)
        assert rows.last - rows.first <= side
        assert rows.first % around.stride == 0
        assert rows.first == 0 or rows.start - rows.first >= around.margin
        assert rows.last == length or rows.last - rows.end >= around.margin
        used += range(rows.start, rows.end)
    assert used == list(range(length))


def test_tiles_that_are_all_overlap_are_refused_with_the_smallest_side():
    assert len(list(tiles_of(100, 1, 10, Overlap(2, 4)))) > 1
    with pytest.raises(UserError, match=r"9 pixels .* 10"):
        list(tiles_of(100, 1, 9, Overlap(2, 4)))
