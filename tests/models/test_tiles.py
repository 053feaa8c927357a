"""Large images in tiles: whatever the net, the scores are those of the whole image, at its border as well."""

import pytest
import torch

from fcn.model import FCN
from pipeline.errors import UserError
from pipeline.models.tiles import Overlap, overlap, tiles

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


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", NETS, ids=lambda net: " ".join(map(str, net.values())))
def test_tiles_give_the_scores_of_the_whole_image(options):
    torch.manual_seed(0)
    net = FCN(num_classes=3, score_init="random", **options).double().eval()
    around = overlap(net)
    side = 2 * around.margin + 2 * around.stride + 5
    height, width = side + 3, side + around.margin + 17
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    joined, num = torch.full((1, 3, height, width), torch.nan, dtype=torch.double), 0
    with torch.inference_mode():
        whole = net(image)
        for (top, bottom, start, end), (left, right, begin, until) in tiles(height, width, side, around):
            score = net(image[:, :, top:bottom, left:right])
            joined[:, :, start:end, begin:until] = score[
                :, :, start - top : end - top, begin - left : until - left
            ]
            num += 1
    assert num >= 4
    assert whole.std() > 0
    torch.testing.assert_close(joined, whole, rtol=0, atol=float(1e-9 * whole.abs().max()))


def test_the_overlap_of_vgg16_is_half_its_field_and_what_the_upsamplings_reach():
    """PAMI: 404 pixels up to fc6. A bilinear kernel reaches less than a cell: 32, then 16, then 8 pixels."""
    with torch.device("meta"):
        assert overlap(FCN(stride=32)) == Overlap(32, 256)  # 202 + 32 = 234
        assert overlap(FCN(stride=8)) == Overlap(32, 288)  # 202 + 32 + 16 + 8 = 258


@pytest.mark.parametrize("length", [*range(1, 12), 13, 31, 32, 33, 64, 100, 257])
def test_every_pixel_is_used_once_and_far_enough_from_the_ends_of_its_tile(length):
    around, side = Overlap(2, 4), 11
    used = []
    for rows, columns in tiles(length, 5, side, around):
        assert columns == (0, 5, 0, 5)
        assert rows.last - rows.first <= side
        assert rows.first % around.stride == 0
        assert rows.first == 0 or rows.start - rows.first >= around.margin
        assert rows.last == length or rows.last - rows.end >= around.margin
        used += range(rows.start, rows.end)
    assert used == list(range(length))


def test_tiles_that_are_all_overlap_are_refused_with_the_least_that_is_not():
    assert len(list(tiles(100, 1, 10, Overlap(2, 4)))) > 1
    with pytest.raises(UserError, match=r"a tile of 9 pixels is all overlap .* at least 10"):
        list(tiles(100, 1, 9, Overlap(2, 4)))
