"""load_model: from a ModelSpec (or a name, directory or hub id that was typed) to a Subject."""

import hashlib
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import torch

from interp_core.errors import InputError, first_line
from interp_core.files.artifacts import file_sha256, load_json
from interp_core.files.sums import RECORD, check_sum, listed_in
from interp_core.mamba.families import KNOWN, recurrence_of, recurrent_subject, refusal
from interp_core.models.anatomy import NotUnderstood, look
from interp_core.models.attention import run_by_us
from interp_core.models.divided import MAPS, all_tensors, device_map_of, torn_apart
from interp_core.models.folder import check_layers, folder_of, weight_files
from interp_core.models.masks import held_masks
from interp_core.models.native import NativeSubject
from interp_core.models.self_check import checked
from interp_core.models.spec import Dtype, ModelSpec, short_name, spec_of
from interp_core.models.subject import Subject, Transformer, as_transformer, without_advice
from interp_core.stimuli.opening import NO_BOS, OWN, opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DeviceMap = str | Mapping[str, int | str | torch.device]

_AGAIN = "train it again"
_MOST_A_BYTE = 8  # weights: the smallest that are packed have one bit
_AT_ONCE = 10**8  # weights that are drawn in a second


def load_model(
    spec: ModelSpec | str | Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    device_map: DeviceMap | None = None,
    dtype: Dtype = "float32",
    bos: str | int = OWN,
) -> Subject:
    """A model ready for study, in evaluation mode, checked: weights finite, tokenizer and
    vocabulary fit.

    `spec` says where it comes from; a directory or a hub id may be given as it is typed, and names
    the subject unless `name` does.
    `device` is cpu, cuda, cuda:N or mps. A model that fits on none alone is divided: `device_map`
    says which part goes where, as accelerate has it, or how to fill the devices (auto, balanced,
    sequential), which may also stand for `device`.
    `bos` is what prompts begin with: OWN for what its tokenizer or configuration names, an id, a
    token, or `none`.
    InputError (one line) for an unreachable hub, a directory without weights, damaged weights,
    not-a-number weights, a tokenizer with more ids than the model embeds, or a device that is not
    there.
    """
    if not isinstance(spec, ModelSpec):
        name = short_name(str(spec)) if name is None else name
        spec = spec_of(str(spec), {})
    name = "model" if name is None else name
    device_map = device if device_map is None and device in MAPS else device_map
    _check_device(device) if device_map is None else _check_map(device_map)
    if dtype not in (kinds := get_args(Dtype)):
        raise InputError(f"unknown dtype {dtype}: {', '.join(kinds)}")
    if spec.source == "random":
        if device_map is not None:
            raise InputError(f"{name}: a model made here from random weights is not divided")
        return _random(spec, name, device, dtype, bos)
    folder = folder_of(spec)
    digest = weights_sha256(folder)
    _match_record(folder)
    model = _from_folder(folder, dtype, device_map)
    if device_map is None:
        _placed(model, device)
    tokenizer = _tokenizer(folder)
    _check_weights(model, name)
    _check_vocabulary(model, tokenizer, name)
    subject = subject_of(model, tokenizer, name=name, bos=bos, digest=digest)
    _check_forward(subject)
    return subject


def begun_with(subject: Subject) -> dict[str, str]:
    """The line of a report that says what its prompts began with."""
    return {"prompts_begin_with": begins_with(subject)}


def begins_with(subject: Subject) -> str:
    """What a subject's prompts begin with, in words."""
    if subject.bos == NO_BOS:
        return "nothing"
    if subject.tokenizer is None:
        return f"id {subject.bos}"
    return f"{subject.tokenizer.convert_ids_to_tokens(subject.bos)} (id {subject.bos})"


def subject_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    name: str = "model",
    bos: str | int = OWN,
    digest: str | None = None,
) -> Subject:
    """A Subject of a Hugging Face causal language model in memory; `bos` as in `load_model`.

    Native where it calls attention through transformers' registry, else through TransformerLens.
    InputError, with the reason, for one that is no plain decoder.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise InputError(
            f"a {type(model).__name__} is no causal language model of transformers; a directory "
            "or a name is read by load_model(...)"
        )
    config = model.config.get_text_config()
    bos = (
        NO_BOS if bos == NO_BOS else opening(name, tokenizer, config, config.vocab_size, asked=bos)
    )
    model.eval().requires_grad_(requires_grad=False)
    digest = digest or _parameters_hash(model)
    divided = device_map_of(model) is not None
    if divided and model.config.model_type in KNOWN:
        raise InputError(f"{name}: a {model.config.model_type} is not divided over devices here")
    if recurrent := recurrent_subject(model, tokenizer, name=name, bos=bos, digest=digest):
        return recurrent

    try:
        # It is run to be understood: a hybrid too, before it is refused.
        with without_advice():
            anatomy = look(model)
            if anatomy is not None:
                if anatomy.beyond_default:
                    run_by_us(model)
                return checked(NativeSubject(name, model, tokenizer, bos, digest, anatomy=anatomy))
    except NotUnderstood as problem:
        kind = model.config.model_type
        raise InputError(f"{name}: a {kind} cannot be studied here: {problem}") from None

    if words := recurrence_of(model):
        raise InputError(refusal(name, model, words))

    if divided:
        raise InputError(
            f"{name}: a {model.config.model_type} runs through TransformerLens, in one piece: "
            "load it without a device_map"
        )

    from interp_core.models.lens import bridged

    return bridged(model, tokenizer, name=name, bos=bos, digest=digest)


def transformer_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    name: str = "model",
    bos: str | int = OWN,
) -> Transformer:
    """The same of a model that must have attention heads.

    InputError, naming what it is, for one that has none.
    """
    return as_transformer(subject_of(model, tokenizer, name=name, bos=bos))


def random_like(subject: Subject, *, seed: int) -> Subject:
    """The same architecture with fresh random weights: the untrained null."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            subject.config, dtype=torch.float32, trust_remote_code=False
        )
    dtype = next(subject.model.parameters()).dtype
    if (device_map := device_map_of(subject.model)) is not None:
        model = _divided(_placed(model, "cpu", dtype), device_map)
    else:
        model = _placed(model, str(subject.device), dtype)
    return subject_of(model, subject.tokenizer, name=f"{subject.name} untrained", bos=subject.bos)


def _random(spec: ModelSpec, name: str, device: str, dtype: Dtype, bos: str | int) -> Subject:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(spec.config or {})
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (KeyError, ValueError) as problem:
        raise InputError(
            f"{name}: `config` needs a model_type that transformers knows: {first_line(problem)}"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
    return subject_of(_placed(model, device), None, name=name, bos=bos)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weight files.

    Hub caches name large files by their hash: one that is not its name is damaged.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        of_file = file_sha256(path)
        stored = path.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", stored) and stored != of_file:
            raise InputError(
                f"{path} is damaged: its SHA-256 is not {stored[:12]}…; delete it and fetch it "
                "again"
            )
        digest.update(of_file.encode())
    return digest.hexdigest()


def files_sha256(spec: ModelSpec) -> str:
    """SHA-256 of what a model is loaded from: weights, configuration and tokenizer, or a random
    one's settings.

    InputError for a directory without weights, and for a hub that cannot be reached.
    """
    if spec.source == "random":
        return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    folder = folder_of(spec)
    beside = [
        file for pattern in ("*.json", "*.txt", "*.model") for file in sorted(folder.glob(pattern))
    ]
    described = [file_sha256(file) for file in beside]
    return hashlib.sha256("".join([weights_sha256(folder), *described]).encode()).hexdigest()


def _match_record(folder: Path) -> None:
    """Models trained here record the hash of every file (files.json), and of their weights
    (training.json). InputError for a file that is missing, or another than was trained.
    """
    record = folder / "training.json"
    if not record.is_file():
        return

    weights = folder / "model.safetensors"
    expected = load_json(record).get("weights_sha256")
    if expected is not None and expected != file_sha256(weights):
        raise InputError(
            f"{weights} is damaged: its SHA-256 differs from training.json's; {_AGAIN}"
        )

    if not (folder / RECORD).is_file():
        return
    for name in sorted(listed_in(folder / RECORD)):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, one of {RECORD}; {_AGAIN}")
        # Checkpoints are many, and checked when they are read.
        if "/" not in name:
            check_sum(folder / name, again=_AGAIN)


def _from_folder(
    folder: Path, dtype: Dtype, device_map: DeviceMap | None = None
) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    config = folder / "config.json"
    check_layers(load_json(config), config)
    disable_progress_bar()
    # What fits in no memory is read from the weights' files; what has to be made of them first
    # (experts that are stacked) is kept in a folder for as long as the model is there.
    made = TemporaryDirectory(prefix="induction-lab-", ignore_cleanup_errors=True)
    divided = {} if device_map is None else {"device_map": device_map, "offload_folder": made.name}
    with _reading(folder, "not a causal language model that can be loaded"), _in_one_line():
        _check_size(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
            # unset, transformers asks on standard input, and a "y" runs the folder's code
            trust_remote_code=False,
            **divided,
        )
    model, report = loaded
    weakref.finalize(model, made.cleanup)
    parts = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if unknown := sorted(set(device_map if isinstance(device_map, Mapping) else ()) - parts):
        raise InputError(f"{folder}: device_map names {unknown[0]}, and the model has no such part")
    if (names := torn_apart(model)) is not None:
        raise InputError(
            f"{folder}: {names[0]} and {names[1]} are one tensor: a device_map that has one of "
            "them on disk must have both there"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder}: the weights lack {len(missing)} tensors of the architecture, {missing[0]} "
            "first"
        )
    unexpected = set(report["unexpected_keys"])
    if surplus := sorted(unexpected - held_masks(folder, unexpected)):
        raise InputError(
            f"{folder}: the weights hold {len(surplus)} tensors that the architecture of "
            f"config.json lacks, {surplus[0]} first"
        )
    return model


def _check_size(folder: Path) -> None:
    """InputError for a configuration out of all proportion to the weights: transformers would draw
    what they lack for minutes, and then find that they do not fit."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Sizes alone, no memory; and no number is drawn that anybody else would have drawn.
    with torch.random.fork_rng(devices=[]), no_init_weights(), torch.device("meta"):
        sizes = AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    held = sum(file.stat().st_size for file in weight_files(folder))
    weights = sum(parameter.numel() for parameter in sizes.parameters())
    if weights > max(_AT_ONCE, _MOST_A_BYTE * held):
        raise InputError(
            f"{folder / 'config.json'} describes {weights:,} weights, and the files of weights "
            f"have {held:,} bytes: a size in it is wrong, or the files are cut or of another model"
        )


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Inside the block transformers prints no table of a file's tensors: what is wrong with them is
    said here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    """InputError, with `what` and its first line, for whatever transformers says of a folder."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except SafetensorError as problem:
        raise InputError(
            f"{folder}: the weights are damaged ({first_line(problem)}): fetch or train the model "
            "again"
        ) from None
    # A damaged file may end anywhere inside the library, and its Rust half raises Exception itself.
    except Exception as problem:  # noqa: BLE001
        reason = _own_code(problem) or _not_weights(problem) or first_line(problem)
        raise InputError(f"{folder}: {what}: {reason}") from None


def _placed(
    model: "PreTrainedModel", device: str, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    torch.nn.Module.to(model, torch.device(device), dtype)
    return model


def _divided(
    model: "PreTrainedModel", device_map: Mapping[str, int | str | torch.device]
) -> "PreTrainedModel":
    from accelerate import dispatch_model

    made = TemporaryDirectory(prefix="induction-lab-", ignore_cleanup_errors=True)
    weakref.finalize(model, made.cleanup)
    # The same object, with hooks that move tensors.
    dispatch_model(model, dict(device_map), offload_dir=made.name)
    return model


def _own_code(problem: Exception) -> str | None:
    """What to say of a model that asks for code of its own to be run; None for another problem."""
    if "trust_remote_code" not in str(problem):
        return None
    return (
        "it names code of its own (auto_map), which is never run here; save it as a type that "
        "transformers knows"
    )


def _not_weights(problem: Exception) -> str | None:
    """What to say of a .bin that holds more than tensors; None for another problem."""
    if "Weights only load failed" not in str(problem):
        return None
    return "its .bin holds more than tensors, or is damaged; what could run as code is not read"


def _tokenizer(folder: Path) -> "PreTrainedTokenizerBase | None":
    from transformers import AutoTokenizer

    if not any(
        (folder / file).is_file()
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        return None
    with _reading(folder, "its tokenizer cannot be read"):
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        found("Some limits of tokenizer_config.json count only when it is used.")
        return found


def _check_device(device: str) -> None:
    kind = device.split(":")[0] if isinstance(device, str) else None
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"unknown device {device}: cpu, cuda, cuda:N, mps, or how to divide a model over all: "
            f"{', '.join(MAPS)}"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device cuda was asked for, but torch sees no CUDA device; use --device cpu"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps was asked for, but torch sees none; use --device cpu")


def _check_map(device_map: DeviceMap) -> None:
    """InputError for a way of dividing that is not known, and for a device that is not there."""
    if isinstance(device_map, str):
        if device_map not in MAPS:
            raise InputError(f"unknown device_map {device_map}: one of {', '.join(MAPS)}")
        return
    if not isinstance(device_map, Mapping):
        raise InputError(
            f"device_map is one of {', '.join(MAPS)}, or maps parts to devices; got {device_map!r}"
        )

    for place in device_map.values():
        if str(place) != "disk":
            _check_device(f"cuda:{place}" if isinstance(place, int) else str(place))


def _check_weights(model: "PreTrainedModel", name: str) -> None:
    parameters = dict(model.named_parameters())
    for key, tensor in all_tensors(model):
        if key in parameters and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: weight {key} holds numbers that are not finite")


@torch.no_grad()
def _check_forward(subject: Subject) -> None:
    """InputError, before hours of measuring, for weights that are finite and overflow when used."""
    ids = torch.tensor([[subject.bos, 0, 1, 2]], device=subject.device) % subject.vocab_size
    if not bool(subject.logits(ids).isfinite().all()):
        told = "its predictions for a few tokens are not finite: a weight is far too large"
        raise InputError(f"{subject.name}: {told}, or the dtype too small")


def _check_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", name: str
) -> None:
    """InputError for a tokenizer of another model. One that has a few tokens added beyond the
    embedding (as Gemma 3's has) fits: prompts never hold them, and a text that does is refused."""
    size = model.config.vocab_size
    if tokenizer is None or len(tokenizer) <= size:
        return

    beyond = range(size, len(tokenizer))
    if not all(index in tokenizer.added_tokens_decoder for index in beyond):
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} ids, the model embeds {size}: no fit"
        )


def _parameters_hash(model: "PreTrainedModel") -> str:
    digest = hashlib.sha256()
    for name, tensor in all_tensors(model):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
