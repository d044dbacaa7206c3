"""The teacher scVI: a variational autoencoder of counts, trained on the training spots alone.

scVI (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2) needs no download, only the library
scvi-tools. It is imported when a teacher is fitted. `Scvi` says what is ours: which settings are
chosen, how the embedding is scaled, and which counts are refused.
"""

import contextlib
import importlib.metadata
import logging
import random
import warnings
from collections.abc import Iterator
from typing import ClassVar, Self

import anndata
import numpy as np
from scipy import sparse

from ..common.device import check_device
from ..common.errors import PekaError
from .teacher_spots import canonical, wrong_values

BATCH = 128  # the library's own batch size
LEARNING_RATE = 3e-3
MAX_EPOCHS = 100


class Scvi:
    """The posterior mean of scVI's latent variables, with the mean of the fitted spots subtracted.

    It is always the mean and never a sample, so the same counts have the same embedding. The
    network is the library's default: one hidden layer of 128 units, zero-inflated negative binomial
    counts. The total of a spot is that of the genes which are given.

    Three settings of the training are ours. All fitted spots are trained on; the library would keep
    a tenth of them for a validation loss that nothing here uses. The learning rate is 3e-3 instead
    of 1e-3. The KL term has its full weight after half of the epochs, instead of after 400.

    No batch key is given, because a held-out section would have none. So differences between
    sections stay in the latent variables as far as the counts have them. The audit of a teacher
    measures how much that is.

    Spots without counts cannot be used: their row is NaN. The library would take the logarithm of
    their total, which is 0. It would also accept values that are no counts, with at most a warning
    that looks at 20 random values; they are refused here.

    Args:
        n_latent: d_t.
        max_epochs: passes over the fitted spots. The library would take 400 for fewer than 20,000
            spots. On the demo (1,860 spots, 600 genes), its settings bring the training loss from
            1,691 nats a spot in the first epoch to 1,157 in 100 epochs, and to 1,116 in 400. With
            ours it is 1,128 after 100, which take 23 s on one core. No test spot had a part in
            this choice. With 12,000 genes, an epoch of 1,860 spots takes 3 s.
        scale: standard deviation of the widest latent variable over the fitted spots. All are
            multiplied by one number, so they keep their relative sizes. The prior makes each
            variable that is used about as wide as the others, with a standard deviation near 1;
            principal components become narrower one after the other. With the scale of the pca
            teacher, the softmax of Eq. 5 at tau = 1 is neither flat nor one-hot.
        seed: of the first weights, the order of spots, dropout and the samples during training.
        device: `cpu` or `cuda`. Another device gives other random numbers and another embedding.

    Raises:
        PekaError: scvi-tools is not installed, or the machine does not have the device.
    """

    name, needs_fit, gene_join = "scvi", True, "inner"
    modules: ClassVar[tuple[str, ...]] = ("models.scvi",)
    description = (
        "latent variables of scVI, trained on training spots; needs no download, but scvi-tools "
        "(make scvi), licence BSD-3-Clause"
    )

    def __init__(
        self,
        n_latent: int = 12,
        max_epochs: int = MAX_EPOCHS,
        scale: float = 2.0,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.n_latent, self.max_epochs, self.scale, self.seed = n_latent, max_epochs, scale, seed
        if not version():
            raise PekaError(
                "the teacher scvi needs the package scvi-tools, which is not installed: run "
                'make scvi, or pip install -c constraints.txt -e ".[scvi]"'
            )
        self.device = check_device(device)

    def fit(self, adata: anndata.AnnData) -> Self:
        """Train on all spots of `adata` that have counts (raw counts; pass training spots only).

        The caller's random states stay as they are.

        Raises:
            PekaError: values that are no counts, or fewer than three spots with counts.
        """
        x = _counts(adata)  # (n, G)
        x = x[_total(x) > 0]
        if x.shape[0] < 3 or not x.shape[1]:  # batch norm needs more than one spot
            raise PekaError(f"the scvi teacher needs three spots with counts and a gene: {x.shape}")
        with _alone(self.seed, self.device):
            self.model, losses = self._trained(x)
        self.loss = float(losses["elbo_train"].iloc[-1, 0])  # nats a spot, with the full KL term
        self.genes, self.trained_on = adata.var_names.copy(), x.shape[0]
        latent = self._latent(x)  # (n, d_t)
        self.mean, self.spread = latent.mean(0), latent.std(0)  # (d_t,)
        return self

    def _trained(self, x: sparse.csr_matrix):
        """The library's model, trained on counts (n, G), and its losses by epoch."""
        from scvi.model import SCVI

        on_gpu = gpus(self.device)
        place = {"accelerator": "gpu" if on_gpu else "cpu", "devices": on_gpu or 1}
        plan = {"lr": LEARNING_RATE, "n_epochs_kl_warmup": self.max_epochs // 2}
        data = anndata.AnnData(x.copy())
        SCVI.setup_anndata(data)
        model = SCVI(data, n_latent=self.n_latent)
        model.train(
            self.max_epochs, train_size=1.0, shuffle_set_split=False,
            batch_size=batch_size(x.shape[0]), plan_kwargs=plan, enable_progress_bar=False, **place,
        )  # fmt: skip
        model.deregister_manager(data)  # the library would keep these counts until Python ends
        return model, model.history

    def _latent(self, x: sparse.csr_matrix) -> np.ndarray:
        """Posterior means float32 (n, d_t) of counts (n, G)."""
        import torch

        parts = (x[start : start + BATCH].toarray() for start in range(0, x.shape[0], BATCH))
        batches = (
            {"X": torch.from_numpy(part), "batch": torch.zeros(len(part), 1)} for part in parts
        )
        with torch.random.fork_rng(gpus(self.device)):  # the library draws samples, too
            return self.model.get_latent_representation(dataloader=batches, give_mean=True)

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Raw counts of spots, with the genes of the fit -> X_teacher float32 (n, d_t).

        A spot without counts has NaN.

        Raises:
            PekaError: the teacher is not fitted, other genes, or values that are no counts.
        """
        if not hasattr(self, "model"):
            raise PekaError("the scvi teacher is not fitted. Call its fit(training spots) first.")
        if not adata.var_names.equals(self.genes):
            found = f"the scvi teacher was fitted on {len(self.genes)} genes in their order"
            raise PekaError(found)
        x = _counts(adata)  # (n, G)
        usable = _total(x) > 0  # (n,)
        x_teacher = np.full((adata.n_obs, self.n_latent), np.nan, np.float32)
        if usable.any():
            widest = float(self.spread.max()) or 1.0
            x_teacher[usable] = (self._latent(x[usable]) - self.mean) / widest * self.scale
        return x_teacher

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings and statistics to store in uns["teacher"]."""
        names = ("n_latent", "max_epochs", "scale", "seed", "device")
        return {name: getattr(self, name) for name in names} | {
            "scvi_tools": version(),
            "training_loss": self.loss,
            "latent_std": self.spread,  # before scaling; unused latent variables are near 0
            "n_usable": int((_total(_counts(adata)) > 0).sum()),
        }

    @staticmethod
    def dim(options: dict) -> int:
        """The number of latent variables."""
        return options.get("n_latent", 12)

    @staticmethod
    def files(options: dict) -> list[str]:
        """None: it is trained here."""
        return []

    @staticmethod
    def named_options(options: dict) -> dict:
        """All options, and the library's version, because another one may train otherwise."""
        return options | {"scvi_tools": version()}


def version() -> str:
    """The installed version of scvi-tools; empty if it is not installed."""
    try:
        return importlib.metadata.version("scvi-tools")
    except importlib.metadata.PackageNotFoundError:
        return ""


def batch_size(n: int) -> int:
    """128, or the next size with which n spots leave no last batch of one or two.

    Batch norm fails on one spot, and two say little about a mean and a variance.
    """
    return next(size for size in range(BATCH, 2 * BATCH) if not 0 < n % size < 3)


def gpus(device: str) -> list[int]:
    """The number of the GPU that a device is; empty for the CPU."""
    kind, _, number = device.partition(":")
    return [int(number or 0)] if kind == "cuda" else []


def _counts(adata: anndata.AnnData) -> sparse.csr_matrix:
    """Raw counts (n, G) as float32; PekaError if some values are no counts."""
    if adata.X is None:
        raise PekaError("scvi: this AnnData has no X; expected raw counts (n, G) in it.")
    x = canonical(adata)
    if wrong := wrong_values(x.data, whole=True):
        raise PekaError(f"scvi: {wrong}")
    return x.astype(np.float32)


def _total(x: sparse.csr_matrix) -> np.ndarray:
    """Sum of counts of each spot, (n,)."""
    return np.asarray(x.sum(1)).ravel()


@contextlib.contextmanager
def _alone(seed: int, device: str) -> Iterator[None]:
    """Seed the library's random numbers, without lines in the log; then restore what it changes.

    The library's own seed would also change switches of cuDNN, variables of the environment and the
    random states of the whole process. An interrupt reaches the caller as one; lightning turns it
    into the end of the process.
    """
    import torch

    states = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    switches, quiet = (cudnn.benchmark, cudnn.deterministic), logging.root.manager.disable
    with torch.random.fork_rng(gpus(device)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its loaders, which are as they should be
        logging.disable(logging.WARNING)
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from None
        finally:
            logging.disable(quiet)
            random.setstate(states[0])
            np.random.set_state(states[1])
            cudnn.benchmark, cudnn.deterministic = switches
