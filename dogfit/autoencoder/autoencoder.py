"""The trained autoencoder: encoding, decoding, saving and loading."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import ArrayLike, Bool, Float
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dogfit.atomic_write import write_atomically
from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.autoencoder.network import Params
from dogfit.autoencoder.training_step import decode_block, encode_block, initial_state
from dogfit.devices import pad_rows
from dogfit.errors import InputError
from dogfit.normalize import normalize_rows, square_kernels

FILE = "autoencoder.safetensors"
FORMAT = "dogfit-autoencoder-2"
NORMALIZATION = "each kernel minus its mean, divided by its Frobenius norm"
BLOCK = 4096
# The encoder has collapsed when its codes fill fewer than about three of 64 equal bins (entropy as a fraction
# of log 64); the decoder when its reconstructions vary less than a tenth as much as the kernels do.
BINS, COLLAPSED_ENTROPY, COLLAPSED_VARIANCE = 64, 0.25, 0.1

_ARRAYS = ("history", "heldout_losses", "encoder_losses", "code_entropies", "reconstruction_variances")


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained autoencoder: kernels of one size to a code in [0, 1], and back.

    A kernel and its negative are different shapes here, on and off, and get different codes, unless
    `config.tie_sign` ties them: then both have one code, cosines are absolute, and the decoded kernel stands
    for either.

    Attributes:
      params: weights of the kept restart, a nested dict of arrays.
      config: settings it was trained with.
      size: taps per side of its kernels.
      history: float32 `[steps, restarts]`, mean cosine loss of each training batch at the nearest of 128
        points of the decoder's curve.
      heldout_losses: float32 `[restarts]`, mean cosine dissimilarity (1 - cosine) of the held-out kernels.
      encoder_losses: float32 `[restarts]`, the same when the encoder's own code is used without a search.
      code_entropies: float32 `[restarts]`, 0 when the encoder gives all kernels one code, 1 when its codes
        fill [0, 1] evenly.
      reconstruction_variances: float32 `[restarts]`, variance of the reconstructions as a fraction of the
        kernels' own.
      restart: index of the kept restart.
    """

    params: Params
    config: AutoencoderConfig
    size: int
    history: Float[np.ndarray, "steps restarts"]
    heldout_losses: Float[np.ndarray, "restarts"]
    encoder_losses: Float[np.ndarray, "restarts"]
    code_entropies: Float[np.ndarray, "restarts"]
    reconstruction_variances: Float[np.ndarray, "restarts"]
    restart: int

    @property
    def heldout_loss(self) -> float:
        """Mean cosine dissimilarity of the held-out kernels, for the kept restart."""
        return float(self.heldout_losses[self.restart])

    @property
    def encoder_loss(self) -> float:
        """Mean cosine dissimilarity of the held-out kernels at the encoder's own codes, without a search."""
        return float(self.encoder_losses[self.restart])

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for a reader of the results: collapsed or diverged restarts; empty if all is well."""
        finite = np.isfinite(self.heldout_losses)
        diverged = int(np.sum(~finite))
        dead = is_collapsed(self.code_entropies, self.reconstruction_variances)
        collapsed = int(np.sum(dead & finite))
        total = len(self.heldout_losses)
        notes = []
        if diverged:
            notes.append(f"{diverged} of {total} restarts diverged and were left out")
        if self.collapsed:
            notes.append(f"the code collapsed in all {total} restarts: clusters from it mean nothing")
        elif collapsed:
            notes.append(f"the code collapsed in {collapsed} of {total} restarts; one that did not was kept")
        return tuple(notes)

    @property
    def collapsed(self) -> bool:
        """True when the kept restart gives nearly all kernels one code, or one reconstruction."""
        return bool(is_collapsed(self.code_entropies, self.reconstruction_variances)[self.restart])

    def encode(self, kernels: ArrayLike, *, search: bool = True) -> Float[np.ndarray, "n"]:
        """Find the code of each kernel.

        The encoder is continuous and must err where similar kernels belong on far parts of the curve; so its
        code is compared with a search over the decoder's curve, and the better is returned.

        Args:
          kernels: `[n, k, k]`; centered and scaled to unit norm here.
          search: False gives the encoder's own code.

        Returns:
          Codes in [0, 1] `[n]`, or `[n, code_dim]` when the code has several numbers; NaN for constant and
          non-finite kernels.

        Raises:
          ValueError: the kernels are not `[n, k, k]` with k = `size`.

        Example:
          >>> codes = autoencoder.encode(kernels)
          >>> codes.shape == (len(kernels),)
          True
          >>> bool(0 <= codes.min() <= codes.max() <= 1)
          True
        """
        return self.encode_and_score(kernels, search=search)[0]

    def decode(self, code: ArrayLike) -> Float[np.ndarray, "m k k"]:
        """Draw the kernels at given codes.

        Args:
          code: in [0, 1] `[m]`, or `[m, code_dim]` when the code has several numbers.

        Returns:
          Kernels `[m, k, k]`, centered and of unit norm.

        Example:
          >>> curve = autoencoder.decode([0.25, 0.5, 0.75])
          >>> curve.shape == (3, autoencoder.size, autoencoder.size)
          True
        """
        codes = np.asarray(code, np.float32).reshape(-1, self.config.code_dim)
        taps = decode_block(self.params, codes, self.config, self.size**2)
        return np.asarray(taps).reshape(-1, self.size, self.size)

    def reconstruction_cosine(self, kernels: ArrayLike, *, search: bool = True) -> Float[np.ndarray, "n"]:
        """Compute the cosine of each centered kernel with its reconstruction.

        Args:
          kernels: `[n, k, k]`; centered and scaled to unit norm here.
          search: False uses the encoder's own code.

        Returns:
          Cosines `[n]`; NaN for constant and non-finite kernels.

        Raises:
          ValueError: the kernels are not `[n, k, k]` with k = `size`.
        """
        return self.encode_and_score(kernels, search=search)[1]

    def encode_and_score(
        self, kernels: ArrayLike, *, search: bool = True, block: int = BLOCK
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Compute what `encode` and `reconstruction_cosine` return, for the work of one of them.

        Args:
          kernels: `[n, k, k]`; centered and scaled to unit norm here.
          search: False uses the encoder's own code.
          block: kernels at once.

        Returns:
          Codes `[n]` (or `[n, code_dim]`) and cosines `[n]`.

        Raises:
          ValueError: the kernels are not `[n, k, k]` with k = `size`.
        """
        array = square_kernels(kernels, self.size)
        code = np.empty((len(array), self.config.code_dim), np.float32)
        cosine = np.empty(len(array), np.float32)
        for start in range(0, len(array), block):
            taps, good = normalize_rows(array[start : start + block])
            here = slice(start, start + len(taps))
            # Small inputs are padded to a power of two, so that few programs are compiled.
            padded, _ = pad_rows(taps, block if len(array) > block else 1 << (len(taps) - 1).bit_length())
            found = encode_block(self.params, padded, self.config)
            best, similarity = found[:2] if search else found[2:]
            code[here] = np.where(good[:, None], np.asarray(best)[: len(taps)], np.nan)
            cosine[here] = np.where(good, np.asarray(similarity)[: len(taps)], np.nan)
        return (code[:, 0] if self.config.code_dim == 1 else code), cosine

    def to_bytes(self) -> bytes:
        """Serialize to one safetensors file: weights, settings, normalization, and how training went."""
        tensors = {
            f"params.{k}": np.array(v) for k, v in flatten_dict(_text_keys(self.params), sep=".").items()
        }
        tensors |= {name: getattr(self, name) for name in _ARRAYS}
        # safetensors writes the memory of an array as it lies and ignores strides.
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        about = {
            "format": FORMAT,
            "size": self.size,
            "restart": self.restart,
            "normalization": NORMALIZATION,
            "config": dataclasses.asdict(self.config),
        }
        return save(tensors, metadata={"dogfit": json.dumps(about)})

    def save(self, directory: str | Path) -> Path:
        """Write the autoencoder as one safetensors file; whole, or not at all.

        Args:
          directory: folder of the file, made if it is missing.

        Returns:
          The path of the file.

        Raises:
          OSError: it cannot be written.
        """
        path = Path(directory) / FILE
        write_atomically(path, self.to_bytes())
        return path

    @classmethod
    def load(cls, directory: str | Path) -> "Autoencoder":
        """Read what `save` wrote.

        Args:
          directory: folder that holds the file, or the file.

        Returns:
          The autoencoder.

        Raises:
          InputError: the file is missing, damaged or not an autoencoder of this format.
        """
        path = Path(directory)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"no autoencoder at {path}; expected a folder that holds {FILE}")
        try:
            return cls.from_bytes(path.read_bytes())
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a dogfit autoencoder: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "Autoencoder":
        """Restore what `to_bytes` gave.

        Args:
          data: content of the file.

        Returns:
          The autoencoder.

        Raises:
          SafetensorError, KeyError, TypeError, ValueError: it is no autoencoder of this format, or damaged.
        """
        tensors = load(data)
        # The library gives the metadata of files alone: 8 bytes of length, then the header's JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get("dogfit", "{}"))
        if about.get("format") != FORMAT:
            raise ValueError(
                f"expected format {FORMAT}, found {about.get('format')}; train it with this version of dogfit"
            )
        if about["normalization"] != NORMALIZATION:
            raise ValueError(f"its kernels are normalized in another way: {about['normalization']}")
        config = AutoencoderConfig.from_json(about["config"])
        flat = {k.removeprefix("params."): v for k, v in tensors.items() if k.startswith("params.")}
        params = _layer_numbers(unflatten_dict(flat, sep="."))
        _check_shapes(params, config, about["size"])
        return cls(
            params=params,
            config=config,
            size=about["size"],
            restart=about["restart"],
            **{name: tensors[name] for name in _ARRAYS},
        )


def load_autoencoders(path: str | Path) -> dict[int, Autoencoder]:
    """Read the autoencoders at `path`.

    Args:
      path: a file that `Autoencoder.save` wrote, its folder, a folder of such folders, or a results folder
        of the main job.

    Returns:
      Autoencoders by kernel size.

    Raises:
      InputError: there is none, two are for one size, or one is damaged.
    """
    root = Path(path)
    folder = root / "autoencoder" if (root / "autoencoder").is_dir() else root
    single = folder.is_file() or (folder / FILE).is_file()
    files = [folder] if single else sorted(folder.glob(f"*/{FILE}"))
    if not files:
        raise InputError(
            f"no autoencoder at {root}; expected an {FILE}, or a folder or results folder that holds one"
        )
    found: dict[int, Autoencoder] = {}
    for file in files:
        autoencoder = Autoencoder.load(file)
        if autoencoder.size in found:
            k = autoencoder.size
            raise InputError(f"{root} holds two autoencoders for {k}x{k} kernels; give the path of one")
        found[autoencoder.size] = autoencoder
    return found


def code_entropy(codes: Float[np.ndarray, "n code"]) -> float:
    """Entropy of codes over 64 equal bins, as a fraction of the most it can be.

    Args:
      codes: in [0, 1] `[n, code_dim]`; of several numbers the one with the most entropy counts.
    """
    fractions = [np.histogram(c, bins=BINS, range=(0, 1))[0] / len(codes) for c in codes.T]
    return float(max(-np.sum(p[p > 0] * np.log(p[p > 0])) for p in fractions) / np.log(BINS))


def is_collapsed(
    code_entropies: Float[np.ndarray, "r"], reconstruction_variances: Float[np.ndarray, "r"]
) -> Bool[np.ndarray, "r"]:
    """Mask of restarts whose encoder or decoder has collapsed."""
    return (code_entropies < COLLAPSED_ENTROPY) | (reconstruction_variances < COLLAPSED_VARIANCE)


def _check_shapes(params: Params, config: AutoencoderConfig, size: int) -> None:
    """Compare loaded weights with those that a configuration asks for."""
    one = dataclasses.replace(config, restarts=1)
    wanted = jax.eval_shape(lambda: initial_state(one, size**2)["params"])
    if jax.tree.structure(wanted) != jax.tree.structure(params):
        raise ValueError("its tensors are not those of its configuration")
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(params), strict=True):
        if a.shape[1:] != b.shape:
            raise ValueError(f"a weight has shape {b.shape}, its configuration asks for {a.shape[1:]}")


def _text_keys(tree: Any) -> Any:
    return {str(k): _text_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _layer_numbers(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _layer_numbers(v) for k, v in tree.items()}
