"""What scripts import from `transformers.data`: collators."""

from gptrio.data.data_collator import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
from gptrio.data.data_collator import DataCollatorForSeq2Seq as DataCollatorForSeq2Seq
from gptrio.data.data_collator import DataCollatorForTokenClassification as DataCollatorForTokenClassification
from gptrio.data.data_collator import DataCollatorWithFlattening as DataCollatorWithFlattening
from gptrio.data.data_collator import DataCollatorWithPadding as DataCollatorWithPadding
from gptrio.data.data_collator import DefaultDataCollator as DefaultDataCollator
from gptrio.data.data_collator import default_data_collator as default_data_collator
