"""Which packages are installed, found without importing them: the `is_..._available` of Transformers."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

Check = Callable[[], bool]
MinVersionCheck = Callable[..., bool]


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


def _is_at_least(distribution: str, least: str) -> bool:
    from packaging.version import parse

    found = installed_version(distribution)
    return found is not None and parse(found) >= parse(least)


def _check_version(module: str, least: str) -> MinVersionCheck:
    """Return a function that returns whether a package is installed, in a version that the caller may name."""

    def is_available(min_version: str = least) -> bool:
        return is_installed(module) and _is_at_least(module, min_version)

    is_available.__doc__ = f"Whether {module} can be imported, in a version not below `min_version`."
    return is_available


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
is_accelerate_available = _check_version("accelerate", "0.26.0")
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
is_torch_neuroncore_available = _check("torch", ("torch_neuronx", "torch-neuronx"))
is_torch_musa_available = _check("torch", "torch_musa")
is_torch_npu_available = _check("torch", "torch_npu")
is_apollo_torch_available = _check("apollo_torch")
is_coloredlogs_available = _check("coloredlogs")
is_comet_available = _check(("comet_ml", "comet-ml"))
is_galore_torch_available = _check("galore_torch")
is_gguf_available = _check_version("gguf", "0.10.0")
is_grokadamw_available = _check("grokadamw")
is_jinja_available = _check("jinja2")
is_librosa_available = _check("librosa")
is_lomo_available = _check("lomo_optim")
is_nltk_available = _check("nltk")
is_onnx_available = _check("onnx")
is_openai_available = _check("openai")
is_optimum_available = _check("optimum")
is_optuna_available = _check("optuna")
is_pandas_available = _check("pandas")
is_pytest_available = _check("pytest")
is_ray_available = _check("ray")
is_rich_available = _check("rich")
is_schedulefree_available = _check_version("schedulefree", "1.2.6")
is_sigopt_available = _check("sigopt")
is_soundfile_available = _check("soundfile")
is_tiktoken_available = _check("tiktoken")
is_torch_bf16_cpu_available = is_torch_compile_available = is_torchdynamo_available = is_torch_available
is_torch_optimi_available = _check(("optimi", "torch-optimi"))
is_torchao_available = _check_version("torchao", "0.4.0")
is_torchaudio_available = is_speech_available
is_torchdistx_available = _check("torchdistx")
is_trackio_available = _check("trackio")


def is_bitsandbytes_available(check_library_only: bool = False) -> bool:
    """Whether bitsandbytes is installed, and torch beside it unless `check_library_only`."""
    return is_installed("bitsandbytes") and (check_library_only or is_torch_available())


def is_liger_kernel_available() -> bool:
    """Whether liger_kernel is installed, in version 0.3 or later."""
    return is_installed("liger_kernel") and _is_at_least("liger_kernel", "0.3.0")


def is_tensorboard_available() -> bool:
    """Whether tensorboard or tensorboardX is installed."""
    return is_installed("tensorboard") or is_installed("tensorboardX")


def is_wandb_available() -> bool:
    """Whether wandb is installed, and not switched off by `WANDB_DISABLED`."""
    return is_installed("wandb") and not is_set("WANDB_DISABLED")


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def is_torch_greater_or_equal(library_version: str, accept_dev: bool = False) -> bool:
    """Whether torch is installed in a version not below one; `accept_dev`: or in one on the way to it."""
    from packaging.version import parse

    found = installed_version("torch")
    if found is None:
        return False
    return parse(parse(found).base_version if accept_dev else found) >= parse(library_version)


def is_torch_flex_attn_available() -> bool:
    """Whether torch has flex attention."""
    return is_torch_greater_or_equal("2.5.0")


def is_torch_cuda_available() -> bool:
    """Whether torch is installed and sees an NVIDIA GPU."""
    return _has_device("cuda")


def is_torch_xpu_available() -> bool:
    """Whether torch is installed and sees an Intel GPU."""
    return _has_device("xpu")


def is_torch_mps_available(min_version: str | None = None) -> bool:
    """Whether torch is installed, not below a version, and sees an Apple GPU."""
    return (min_version is None or is_torch_greater_or_equal(min_version)) and _has_device("backends.mps")


def is_torch_bf16_gpu_available() -> bool:
    """Whether torch sees a GPU that computes in bfloat16."""
    if is_torch_cuda_available():
        return bool(importlib.import_module("torch.cuda").is_bf16_supported())
    return is_torch_xpu_available() and bool(importlib.import_module("torch.xpu").is_bf16_supported())


def is_torch_tf32_available() -> bool:
    """Whether torch sees an NVIDIA GPU that computes in TF32."""
    return is_torch_cuda_available() and importlib.import_module("torch.cuda").get_device_capability()[0] >= 8


def _has_device(kind: str) -> bool:
    return is_torch_available() and bool(importlib.import_module(f"torch.{kind}").is_available())


def is_flash_attn_2_available() -> bool:
    """Whether flash_attn is installed and torch sees a GPU to run it on."""
    return is_installed("flash_attn", "flash-attn") and is_torch_cuda_available()


def is_torch_xla_available() -> bool:
    """Whether torch_xla can be imported."""
    return is_installed("torch_xla")


def is_sagemaker_mp_enabled() -> bool:
    """Whether SageMaker divides the model among GPUs, which this project has no part of: False."""
    return False
