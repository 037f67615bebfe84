"""Is this mathematical answer right? Decided without ever running text as code."""

from minillm.grading.answers import extract_boxed
from minillm.grading.grader import Grade, Gradeable, Grader

__all__ = ["Grade", "Gradeable", "Grader", "extract_boxed"]
