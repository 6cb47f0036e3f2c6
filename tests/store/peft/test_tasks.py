"""A task is known by its class and by the heads that it saves, as PEFT and transformers have them."""

import pytest
import transformers
from peft.utils import TaskType

from polyvera.store.peft.tasks import TASKS, PeftTask, library_of, task_of_class, task_of_heads


def test_the_tasks_are_pefts():
    assert set(TASKS) == {task.value for task in TaskType}
    assert all(hasattr(transformers, task.auto) for task in TASKS.values())


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("BertForTokenClassification", "TOKEN_CLS"),
        ("BertForQuestionAnswering", "QUESTION_ANS"),
        ("BertModel", "FEATURE_EXTRACTION"),
        ("LlavaForConditionalGeneration", None),
        ("PooledForSequenceClassification", None),
        ("", None),
    ],
)
def test_a_class_is_of_one_task(name, task):
    found = task_of_class(name)
    assert (found and found.name) == task


def test_heads_tell_a_task():
    assert task_of_heads(("classifier",)).name == "SEQ_CLS" and task_of_heads(("qa_outputs",)).name == "QUESTION_ANS"
    assert task_of_heads(()) is None and task_of_heads(("lm_head",)) is None
    assert TASKS["SEQ_CLS"].has_its_head(("bert.pooler", "classifier")) and not TASKS["SEQ_CLS"].has_its_head(())
    assert TASKS["CAUSAL_LM"].has_its_head(())


def test_a_class_is_found_in_its_module():
    assert library_of("LlavaForConditionalGeneration") == "transformers.models.llava.modeling_llava"
    assert library_of("NoSuchModel") is None


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.heads], ids=lambda task: task.name)
def test_the_last_matrix_of_a_head_says_how_many_classes_there_are(task: PeftTask) -> None:
    *_, head = task.heads
    own = {f"{head}.dense.weight": (8, 8), f"x.{head}.out_proj.weight": (3, 8), f"{head}.bias": (3,)}
    shapes = {**own, "z.weight": (9, 8)}
    assert task.num_classes(shapes) == 3
    assert task.num_classes({f"{head}.weight": (2, 8)}) == 2 and task.num_classes({"z.weight": (9, 8)}) is None
