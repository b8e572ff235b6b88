"""Which packages are installed, found without importing them: the `is_..._available` of Transformers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

Check = Callable[[], bool]


def is_installed(module: str, distribution: str | None = None) -> bool:
    """Whether a package can be imported and was installed as a distribution (of its own name by default)."""
    try:
        return importlib.util.find_spec(module) is not None and installed_version(distribution or module) is not None
    except ValueError:  # a module without a specification
        return False


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, read without importing it; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _check(*packages: str | tuple[str, str]) -> Check:
    """Return a function that returns whether all of some packages are installed."""
    pairs = [(name, name) if isinstance(name, str) else name for name in packages]

    def is_available() -> bool:
        return all(is_installed(*pair) for pair in pairs)

    is_available.__doc__ = f"Whether {' and '.join(module for module, _ in pairs)} can be imported."
    return is_available


is_torch_available = _check("torch")
is_flax_available = _check("jax", "flax")
is_tf_available = _check("tensorflow")
is_tokenizers_available = _check("tokenizers")
is_safetensors_available = _check("safetensors")
is_accelerate_available = _check("accelerate")
is_bitsandbytes_available = _check("bitsandbytes", "torch")
is_peft_available = _check("peft")
is_datasets_available = _check("datasets")
is_numba_available = _check("numba")
is_scipy_available = _check("scipy")
is_sklearn_available = _check(("sklearn", "scikit-learn"))
is_psutil_available = _check("psutil")
is_matplotlib_available = _check("matplotlib")
is_sentencepiece_available = _check("sentencepiece")
is_vision_available = _check(("PIL", "pillow"))
is_torchvision_available = _check("torch", "torchvision")
is_torch_sdpa_available = is_torch_available
is_speech_available = _check("torchaudio")
is_apex_available = _check("apex")
is_av_available = _check("av")
is_timm_available = _check("timm")
is_faiss_available = _check(("faiss", "faiss-cpu"))
is_phonemizer_available = _check("phonemizer")
is_py3nvml_available = _check("py3nvml")
is_pyctcdecode_available = _check("pyctcdecode")
is_sacremoses_available = _check("sacremoses")
is_keras_nlp_available = _check("tensorflow", ("keras_nlp", "keras-nlp"))
is_tensorflow_text_available = _check("tensorflow", ("tensorflow_text", "tensorflow-text"))
is_torch_hpu_available = _check("torch", ("habana_frameworks", "habana-torch-plugin"))
is_torch_mlu_available = _check("torch", "torch_mlu")
is_torch_musa_available = _check("torch", "torch_musa")
is_torch_npu_available = _check("torch", "torch_npu")
is_torch_neuroncore_available = _check("torch", ("torch_neuronx", "torch-neuronx"))


def is_torch_cuda_available() -> bool:
    """Whether torch is installed and sees an NVIDIA GPU."""
    return _has_device("cuda")


def is_torch_xpu_available() -> bool:
    """Whether torch is installed and sees an Intel GPU."""
    return _has_device("xpu")


def _has_device(kind: str) -> bool:
    return is_torch_available() and bool(importlib.import_module(f"torch.{kind}").is_available())


def is_flash_attn_2_available() -> bool:
    """Whether flash_attn is installed and torch sees a GPU to run it on."""
    return is_installed("flash_attn", "flash-attn") and is_torch_cuda_available()


def is_torch_xla_available() -> bool:
    """Whether torch_xla can be imported."""
    return is_installed("torch_xla")
