"""A model live: what is answered is what the model does, and nobody else is answered."""

from collections.abc import Callable

import numpy as np
import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import known_circuits as known
import small_models as small
from interp_core.loading import subject_of, transformer_of
from interp_core.models.subject import Subject, Transformer
from interp_core.page.explore import Reader, application
from interp_core.statistics.heads import Head
from small_project import word_tokenizer

TOKEN = "a-token-of-the-test"
COPIED = "w5 w6 w7 w8 w5 w6 w7 w8"
FAMILIES = [*small.ALL, "mamba"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """As models on disk have it: TransformerLens's bridge loads it again from where it was."""
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer(40).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Subject:
    kind = request.param
    model = small.mamba() if kind == "mamba" else small.build(kind)
    return subject_of(model, tokenizer, name=kind)


@pytest.fixture
def induction() -> Transformer:
    """The hand-built circuit, with a word for each id."""
    return transformer_of(known.induction_model(), word_tokenizer(), name="induction")


@pytest.fixture
def client(induction: Transformer) -> TestClient:
    return TestClient(application(induction, TOKEN, seed=0), base_url="http://127.0.0.1:8000")


def test_the_map_finds_the_induction_head(client: TestClient) -> None:
    answer = client.post(f"/{TOKEN}/read", json={"text": COPIED}).json()
    score = np.array(answer["score"])

    assert np.unravel_index(score.argmax(), score.shape) == known.INDUCTION_HEAD
    assert score.max() > 0.9
    assert answer["tokens"][1:] == COPIED.split()


def test_without_the_induction_head_nothing_is_copied_and_without_another_all_is(
    client: TestClient,
) -> None:
    whole = client.post(f"/{TOKEN}/read", json={"text": COPIED}).json()
    answer = client.post(
        f"/{TOKEN}/without", json={"text": COPIED, "heads": [list(known.INDUCTION_HEAD)]}
    ).json()
    copied = [query for query, _ in whole["pairs"]]

    def loss(found: dict[str, list[float]]) -> float:
        return float(np.mean([found["loss"][at] for at in copied]))

    assert loss(whole["whole"]) < 0.1
    assert loss(answer["without"]) > 1
    assert all(loss(one) < 0.1 for one in answer["random"])
    assert all(name[0].startswith("L1") for name in answer["names"])


def test_a_control_is_never_the_same_heads(induction: Transformer) -> None:
    every = [Head(1, head) for head in range(induction.n_heads)]
    assert Reader(induction, 0).without(COPIED, every)["random"] == []


def test_every_family_answers(family: Subject) -> None:
    reader = Reader(family, 0)
    answer = reader.read("w5 w6 w7 w5 w6 w9")
    without = reader.without("w5 w6 w7 w5 w6 w9", [Head(0, 0)])

    assert len(answer["whole"]["loss"]) == len(answer["tokens"]) - 1
    assert without["without"]["loss"] != answer["whole"]["loss"]
    assert without["random"]
    assert set(map(tuple, without["names"])) != {("L0H0",)}


def test_what_is_read_in_one_pass_is_what_the_model_says(family: Subject) -> None:
    found = Reader(family, 0)._read("w5 w6 w7 w5 w6 w9").found
    logits = (
        family.logits(family.ids([[family.bos, 5, 6, 7, 5, 6, 9]]))[0, :-1].float().log_softmax(-1)
    )
    loss = -logits[np.arange(6), [5, 6, 7, 5, 6, 9]]

    np.testing.assert_allclose(found.predicted.loss[0], loss.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(found.patterns.sum(axis=-1), 1.0, atol=1e-3)


def test_a_model_that_never_saw_a_first_token_is_given_none() -> None:
    subject = transformer_of(known.induction_model(), word_tokenizer(), name="i", bos="none")
    client = TestClient(application(subject, TOKEN, seed=0), base_url="http://127.0.0.1:8000")
    answer = client.post(f"/{TOKEN}/read", json={"text": COPIED}).json()
    short = client.post(f"/{TOKEN}/read", json={"text": "w5"}).json()

    assert answer["tokens"] == COPIED.split()
    assert [query for query, _ in answer["pairs"]] == [4, 5, 6]
    assert "at least two tokens" in short["error"]


def test_a_text_that_repeats_nothing_has_no_score(client: TestClient) -> None:
    assert client.post(f"/{TOKEN}/read", json={"text": "w1 w2 w3"}).json()["score"] is None


@pytest.mark.parametrize(
    ("what", "asked", "message"),
    [
        ("read", {"text": ""}, "at least one token"),
        ("read", {"text": " ".join(["w1"] * 300)}, "at most"),
        ("read", {"text": 7}, "needs a text"),
        ("read", [], "an object"),
        ("without", {"text": COPIED, "heads": []}, "the heads that are off"),
        ("without", {"text": COPIED, "heads": [[99, 0]]}, "no head of this model"),
        ("without", {"text": COPIED, "heads": [["<script>", 0]]}, "no head of this model"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(
    client: TestClient, what: str, asked: object, message: str
) -> None:
    answer = client.post(f"/{TOKEN}/{what}", json=asked)

    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_request_that_is_no_json_or_too_large_is_refused(client: TestClient) -> None:
    assert client.post(f"/{TOKEN}/read", content=b"{").status_code == 422
    assert client.post(f"/{TOKEN}/read", content=b" " * 200_000).status_code == 422


@pytest.mark.parametrize("path", ["/", "/read", "/another-token/", "/another-token/read"])
def test_nobody_is_answered_without_the_token(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path, json={"text": COPIED}).status_code == 404


def test_another_host_is_not_answered(client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/").status_code == 200
    assert client.get(f"/{TOKEN}/", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("closed", ["docs", "openapi.json", "static", "../"])
def test_nothing_else_is_served(client: TestClient, closed: str) -> None:
    assert client.get(f"/{TOKEN}/{closed}").status_code in (404, 405)


def test_a_hostile_name_is_text_on_the_live_page() -> None:
    name = "</script><script>window.hurt=1</script>"
    subject = subject_of(known.induction_model(), word_tokenizer(), name=name)
    page = TestClient(application(subject, TOKEN, seed=0), base_url="http://127.0.0.1").get(
        f"/{TOKEN}/"
    )

    read: Callable[[str], int] = page.text.count
    assert read("<script>window.hurt") == 0
