"""Texts that neurons are looked at on."""

from pathlib import Path

from tokenizers import Tokenizer

from interp_core.stimuli.corpus import Corpus
from mamba_neurons.data import read_documents
from mamba_neurons.params import MambaNeurons


def test_without_texts_of_the_users_they_are_held_out_documents(
    project: Path, params: MambaNeurons
) -> None:
    corpus = Corpus.load(project / "data" / "corpus")
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_file))
    held_out, seen = (
        tokenizer.decode(stream.tolist()) for stream in (corpus.validation, corpus.train)
    )
    documents = read_documents(params)

    assert len(documents) == (corpus.validation == 0).sum()
    assert all(document in held_out for document in documents)
    assert not any(document in seen for document in documents)
