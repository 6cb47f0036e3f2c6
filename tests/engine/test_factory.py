"""Each base has its engine, and each engine says what it serves."""

from tiny_encoder import make_bert
from tiny_serve import make_llama, make_tokenizer
from transformers import BertModel

from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.factory import engine_for
from polyvera.engine.generation.generator import Generator
from polyvera.engine.limits import Limits
from polyvera.engine.protocol import EmbeddingEngine, GenerationEngine
from polyvera.model.load import Base


def test_a_model_that_writes_has_a_generator() -> None:
    engine = engine_for(Base(make_llama(), make_tokenizer()), limits=Limits(max_rows=3))
    writes: GenerationEngine | None = engine.generation
    assert type(engine) is Generator and writes is engine and engine.embedding is None and engine.limits.max_rows == 3


def test_a_model_that_reads_has_an_embedder() -> None:
    for model in (make_bert(), make_bert(kind=BertModel)):
        engine = engine_for(Base(model, make_tokenizer()))
        reads: EmbeddingEngine | None = engine.embedding
        assert type(engine) is Embedder and reads is engine and engine.generation is None
