import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ["<s>", "</s>", "<unk>", "user", "assistant", "system", ":", *(f"w{i}" for i in range(40))]
TEMPLATE = (
    "{% for m in messages %} {{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)


def make_tokenizer(*, bos: bool = False, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Words between spaces; the pad token is the end token, as in SmolLM2."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.chat_template = template
    return tokenizer


def make_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def make_classifier(num_labels: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=num_labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).eval()


SEQ2SEQ_IDS = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "init_std": 0.2}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}


def make_seq2seq(family: str = "t5") -> PreTrainedModel:
    """A tiny random encoder-decoder, of T5's or of BART's."""
    torch.manual_seed(0)
    makes = {
        "t5": lambda: T5ForConditionalGeneration(T5Config(**SEQ2SEQ_IDS, **T5, pad_token_id=1, dropout_rate=0.0)),
        "bart": lambda: BartForConditionalGeneration(
            # BART's embedding of the pad token is 0, and so is its logit: it must not be the end token
            BartConfig(**SEQ2SEQ_IDS, **BART, pad_token_id=2, decoder_start_token_id=1, dropout=0.0)
        ),
    }
    return makes[family]().eval()


def counting_rows(num_rows: int) -> list[dict[str, str]]:
    """Rows that a tiny model can learn: two words and the two that follow them, of varying length."""
    rows = []
    for i in range(num_rows):
        first = (7 * i) % 20
        lead = "w39 " * (i % 3)
        rows.append({"prompt": f"{lead}w{first} w{first + 1}", "completion": f"w{first + 2} w{first + 3}"})
    return rows
