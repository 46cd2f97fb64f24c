"""Tasks bound to labels, as the tests need them."""

from __future__ import annotations

from collections.abc import Sequence

from export.tasks.multiple_choice import MultipleChoiceTask
from export.tasks.question_answering import QuestionAnsweringTask
from export.tasks.text_classification import SINGLE_LABEL, TextClassificationTask
from export.tasks.token_classification import TokenClassificationTask


def classification(
    labels: Sequence[str], function_to_apply: str = "softmax", problem_type: str = SINGLE_LABEL, *, pair: bool = False
) -> TextClassificationTask:
    return TextClassificationTask.from_settings(
        {"labels": list(labels), "function_to_apply": function_to_apply, "problem_type": problem_type, "pair": pair}
    )


def tagging(labels: Sequence[str]) -> TokenClassificationTask:
    return TokenClassificationTask.from_settings({"labels": list(labels)})


def choosing() -> MultipleChoiceTask:
    return MultipleChoiceTask.from_settings({})


def answering() -> QuestionAnsweringTask:
    return QuestionAnsweringTask.from_settings({})
