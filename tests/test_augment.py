"""Each operation of common.augment against torchvision's, and the whole against its pipeline."""
from itertools import permutations

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode

import common

NEUTRAL = dict(min_scale=1.0, brightness=0, contrast=0, saturation=0, hue=0, gray_p=0)
ZERO, ONE = torch.zeros(3), torch.ones(3)                  # mean, std: nothing is normalised


def test_colours_change_as_torchvision_changes_them_in_all_orders(photos, monkeypatch):
    """Nothing else is drawn here.  The nine images get nine amounts of each of the four changes."""
    change = torch.linspace(-1, 1, 9)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 1.0, "hue": 0.5}

    def rand(n, *shape, device):
        draws = torch.ones(n, *shape)
        draws[-5] = 0                                      # below jitter_p: colours are changed
        draws[-4:] = (change.view(-1, 1, 1, 1) + 1) / 2
        return draws
    expected, seen = {}, set()
    for order in permutations(strengths):
        views = [image.float() / 255 for image in photos[:9]]
        for name in order:
            amounts = change * strengths[name] + (name != "hue")
            adjust = getattr(TF, f"adjust_{name}")
            views = [adjust(view, amount.item()) for view, amount in zip(views, amounts)]
        expected[order] = torch.stack(views)
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "rand", rand)
    for _ in range(200):
        ours = common.augment(photos[:9], ZERO, ONE, **NEUTRAL | strengths)
        like = [order for order, x in expected.items() if torch.allclose(ours, x, atol=1e-3)]
        assert len(like) == 1
        seen.update(like)
    assert len(seen) == 24


def test_grayscale_equals_torchvision_and_has_no_hue_to_change(photos):
    x = photos.float() / 255
    gray = TF.rgb_to_grayscale(x, 3).clone(memory_format=torch.contiguous_format)
    assert (common.luminance(x) - gray).abs().max() <= 1e-6
    gray[0], gray[1] = 0, 1                                # black and white
    shift = torch.linspace(-0.5, 0.5, 25).view(-1, 1, 1, 1)
    assert torch.allclose(common.adjust_hue(gray.clone(), shift), gray, atol=1e-6)


def test_resized_crop_equals_pil_bicubic(photos):
    torch.manual_seed(0)
    x = photos.repeat(8, 1, 1, 1)
    start, length = common.random_boxes(len(x), 32, 0.08, "cpu")
    mirror = torch.rand(len(x)) < 0.5
    ours = common.resized_crop(x, start, length, mirror)
    for i, image in enumerate(x):
        (left, top), (w, h) = start[:, i].int().tolist(), length[:, i].int().tolist()
        pil = TF.to_pil_image(image)
        pil = TF.resized_crop(pil, top, left, h, w, [32, 32], InterpolationMode.BICUBIC)
        pil = TF.to_tensor(TF.hflip(pil) if mirror[i] else pil)
        assert (ours[i] - pil).abs().max() <= 3 / 255, (left, top, w, h)


def test_boxes_are_drawn_as_torchvision_draws_them(n=20000):
    """Means and standard deviations of area, log aspect and centre, within five errors."""
    torch.manual_seed(0)
    draws = [T.RandomResizedCrop.get_params(torch.empty(3, 32, 32), (0.2, 1.0), (3 / 4, 4 / 3))
             for _ in range(n)]
    top, left, h, w = torch.tensor(draws).T
    boxes = common.random_boxes(n, 32, 0.2, "cpu"), (torch.stack([left, top]), torch.stack([w, h]))
    tables = [torch.stack([length.prod(0) / 1024, (length[0] / length[1]).log(),
                           *(start + length / 2) / 32]) for start, length in boxes]
    five_errors = 5 * 0.3 / n**0.5 * 2**0.5
    for statistic in (torch.mean, torch.std):
        ours, theirs = (statistic(table, 1) for table in tables)
        assert (ours - theirs).abs().max() < five_errors, (ours, theirs)


def test_whole_image_when_no_draw_fits(monkeypatch):
    def largest(self, low, high):                          # 4 : 3 and the whole area: never fits
        return self.fill_(high)
    monkeypatch.setattr(torch.Tensor, "uniform_", largest)
    start, length = common.random_boxes(5, 32, 0.2, "cpu")
    assert (start == 0).all() and (length == 32).all()


def view_statistics(v):
    """v: [N, 3, 32, 32] in 0..1 -> of each view means, spreads, saturation, differences [N, 9]"""
    flat = v.flatten(2)
    c = flat - flat.mean(2, keepdim=True)
    corr = (c[:, 0] * c[:, 1]).mean(1) / (c[:, 0].std(1) * c[:, 1].std(1) + 1e-3)
    return torch.cat([flat.mean(2), flat.std(2), (v.amax(1) - v.amin(1)).mean((1, 2))[:, None],
                      (v[..., 1:] - v[..., :-1]).abs().mean((1, 2, 3))[:, None],
                      corr[:, None]], 1)


def test_views_have_the_distribution_of_torchvisions_pipeline(photos):
    """5000 views of 25 images: means and spreads of nine statistics within five errors."""
    torch.manual_seed(0)
    pipeline = T.Compose([
        T.RandomResizedCrop(32, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        T.RandomGrayscale(0.2), T.ToTensor()])
    pil = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in photos]
    theirs = view_statistics(torch.stack([pipeline(p) for p in pil for _ in range(200)]))
    ours = [common.augment(photos, ZERO, ONE) for _ in range(200)]       # 200 orders of the jitter
    ours = view_statistics(torch.stack(ours, 1).flatten(0, 1))
    of_image = [x.view(25, 200, -1).var(1).mean(0) for x in (theirs, ours)]
    error = (sum(of_image) / 5000).sqrt()                  # of the mean over the 25 images
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error + 0.5 / 255).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.06).all()


def test_every_image_has_its_own_draw(photos):
    """64 copies of one image become 64 different views, in every single operation."""
    torch.manual_seed(0)
    x = photos[:1].repeat(64, 1, 1, 1)
    for name, value in dict(min_scale=0.2, brightness=0.4, contrast=0.4, saturation=0.4,
                            hue=0.1).items():
        v = common.augment(x, ZERO, ONE, **NEUTRAL | {"jitter_p": 1.0, name: value})
        v = v.flatten(1).sort(1).values                    # a mirrored image counts as the same
        assert len(v.mul(1e4).round().unique(dim=0)) >= 60, name
    for changed, kinds in (({}, 2), ({"gray_p": 0.5}, 4)):                # 2: mirrored
        v = common.augment(x.repeat(13, 1, 1, 1), ZERO, ONE, **NEUTRAL | changed)
        n = v.flatten(1).mul(1e3).round().unique(dim=0, return_counts=True)[1]
        assert len(n) == kinds and n.min() > 0.75 * n.sum() / kinds, changed     # as often as not


def test_output_is_normalised_channels_last_and_leaves_its_input(photos):
    before = photos.clone()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    torch.manual_seed(1)
    v = common.augment(photos, mean, std)
    torch.manual_seed(1)
    raw = common.augment(photos, ZERO, ONE)
    assert torch.equal(photos, before) and v.dtype == torch.float32 and v.shape == photos.shape
    assert v.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(TF.normalize(raw, mean.tolist(), std.tolist()), v, atol=1e-6)
    assert raw.min() >= 0 and raw.max() <= 1
