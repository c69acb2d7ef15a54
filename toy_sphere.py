"""A film of four small nets that learn without labels: two of them collapse.

Noise makes two *views* of a point.  A net turns each view into a vector z of three numbers, and it
learns to make both z alike.  Divided by its length, z is a place on a sphere.  The film shows 400
points during training.  A colour is one of eight classes, which no net is told.

    no predictor            All points run to one place: complete collapse.  The loss is minimal.
    no predictor, final BN  A BatchNorm at the end keeps points apart, but a dimension is lost, and
                            classes fall on each other: dimensional collapse.
    SimSiam                 The predictor h, a second net, predicts the other view's z.  That z gets
                            no gradient (stop-gradient).  The classes spread over the sphere.
    InfoNCE                 Each point pushes all others away, so the classes spread evenly.

m_o is the length of the points' mean: 1 after complete collapse, and small otherwise.  rank says
how many of the 3 dimensions are in use.  After complete collapse it is noise.

    python toy_sphere.py                       toy_sphere.gif and toy_sphere.png, in 30 seconds
    python toy_sphere.py --nets simsiam,no_stopgrad,mirror,symmetric,bias
"""
import argparse

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import common

CLASSES, DIMS = 8, 32                                      # classes; numbers in a point
EVERY = 15                                                 # steps between two frames of the film


# ------------------------------------------------------------------------------------------ losses

def D(p, z):
    """Minus the cosine of the angle between p and z, averaged.  p, z: [B, 3] -> scalar"""
    return -F.cosine_similarity(p, z, dim=1).mean()


def naive(h, z1, z2):
    return D(z1, z2)                                       # z1, z2: the two views of B points


def simsiam(h, z1, z2):
    return D(h(z1), z2.detach()) / 2 + D(h(z2), z1.detach()) / 2  # detach: the stop-gradient


def no_stopgrad(h, z1, z2):
    return D(h(z1), z2) / 2 + D(h(z2), z1) / 2


def mirror(h, z1, z2):                                     # mirror, symmetric, bias: Zhang et al.
    return D(z1, h(z2.detach())) / 2 + D(z2, h(z1.detach())) / 2  # h is applied to the target


def symmetric(h, z1, z2):
    return D(h(z1), h(z2).detach()) / 2 + D(h(z2), h(z1).detach()) / 2  # h is applied to both


def info_nce(h, z1, z2, temperature=0.2):
    logits = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / temperature
    own = torch.arange(len(z1))                            # row i of z1 belongs to row i of z2
    return F.cross_entropy(logits, own) / 2 + F.cross_entropy(logits.T, own) / 2


def bias(h, z1, z2):
    return simsiam(h, F.normalize(z1, dim=1), F.normalize(z2, dim=1))


NETS = {                                                   # title, loss, final BatchNorm?
    "naive": ("no predictor", naive, False), "naive_bn": ("no predictor, final BN", naive, True),
    "simsiam": ("SimSiam", simsiam, True), "infonce": ("InfoNCE", info_nce, True),
    "no_stopgrad": ("no stop-gradient", no_stopgrad, False), "mirror": ("mirror", mirror, False),
    "symmetric": ("symmetric predictor", symmetric, False), "bias": ("bias", bias, False)}


# ---------------------------------------------------------------------------------------- training

def simulate(name, steps=600, seed=0, every=EVERY):
    """Train one net.  -> 400 points on the sphere at T moments [T, 400, 3]; their classes [400]"""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIMS, generator=generator)

    def make_points(n):
        y = torch.randint(CLASSES, (n,), generator=generator)
        return centres[y] + 0.5 * torch.randn(n, DIMS, generator=generator), y

    shown, y = make_points(400)
    _, loss_of, final_bn = NETS[name]
    f = nn.Sequential(
        nn.Linear(DIMS, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 3, bias=False))
    if final_bn:
        f.append(nn.BatchNorm1d(3, affine=False))
    h = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    if name == "bias":                                     # only b is trained: h(z) = z + b
        h = nn.Linear(3, 3)
        nn.init.eye_(h.weight.requires_grad_(False))
    groups = [{"params": f.parameters()}, {"params": h.parameters(), "lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    film = []
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                film.append(F.normalize(f(shown), dim=1))
        x, _ = make_points(128)
        x1, x2 = x + 0.6 * torch.randn(2, *x.shape, generator=generator)   # two views of each point
        loss = loss_of(h, f(x1), f(x2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(film), y


def draw_sphere(axis, Z, y, title, angle):
    """Draw a sphere and its points, seen from `angle`.  Z: [400, 3], y: [400]"""
    axis.clear()
    u, v = torch.linspace(0, 2 * torch.pi, 25)[:, None], torch.linspace(0, torch.pi, 13)
    axis.plot_wireframe((u.cos() * v.sin()).numpy(), (u.sin() * v.sin()).numpy(),
                        v.cos().expand(25, 13).numpy(), color="0.88", lw=0.5)
    axis.scatter(*Z.T, c=y, cmap="tab10", s=9, alpha=0.8)
    found = common.collapse_metrics(Z)
    axis.set_title(f"{title}\nm_o {found['m_o']:.2f}, rank {found['effective_rank']:.1f}", y=0.96)
    axis.view_init(elev=20, azim=angle)
    axis.set_box_aspect((1, 1, 1), zoom=1.45)
    axis.set_axis_off()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="naive,naive_bn,simsiam,infonce", help=", ".join(NETS))
    parser.add_argument("--seed", type=int, default=0, help="seed of the points and the nets")
    parser.add_argument("--out", default="runs", help="the run makes its own folder in this one")
    args = parser.parse_args(argv)
    names = args.nets.split(",")
    if not set(names) <= set(NETS):
        common.fail(f"--nets takes names of this list, separated by commas: {', '.join(NETS)}")
    films = []
    for name in names:
        film, y = simulate(name, seed=args.seed)
        films.append(film)
        found = common.collapse_metrics(film[-1])
        print(f"{NETS[name][0]:24} m_o {found['m_o']:.2f}, rank {found['effective_rank']:.2f} of 3")
    folder, last = common.new_folder(args.out, f"toy_sphere-s{args.seed}"), len(films[0]) - 1
    figure = Figure(figsize=(2.5 * len(names), 8), layout="constrained")
    for row, moment in enumerate((0, last // 8, last)):
        for column, (name, film) in enumerate(zip(names, films), start=1):
            axis = figure.add_subplot(3, len(names), row * len(names) + column, projection="3d")
            draw_sphere(axis, film[moment], y, f"{NETS[name][0]}, step {EVERY * moment}", angle=30)
    figure.savefig(folder / "toy_sphere.png", dpi=80)

    figure = FigureCanvasAgg(Figure(figsize=(2.5 * len(names), 3))).figure
    figure.subplots_adjust(0, 0, 1, 0.82, 0, 0)
    axes = [figure.add_subplot(1, len(names), i + 1, projection="3d") for i in range(len(names))]

    def draw_frame(frame):
        for axis, name, film in zip(axes, names, films):   # after the end they only turn
            draw_sphere(axis, film[min(frame, last)], y, NETS[name][0], angle=30 + 3 * frame)

    film = FuncAnimation(figure, draw_frame, frames=last + 12)
    film.save(folder / "toy_sphere.gif", PillowWriter(fps=8), dpi=62)
    print(f"{folder}: toy_sphere.gif, toy_sphere.png")


if __name__ == "__main__":
    common.cli(main)
