"""What scripts import from `transformers.optimization`: schedules of the learning rate, Adafactor."""

from gptrio.training.adafactor import Adafactor as Adafactor
from gptrio.training.adafactor import AdafactorSchedule as AdafactorSchedule
from gptrio.training.adafactor import get_adafactor_schedule as get_adafactor_schedule
from gptrio.training.schedules import get_constant_schedule as get_constant_schedule
from gptrio.training.schedules import get_constant_schedule_with_warmup as get_constant_schedule_with_warmup
from gptrio.training.schedules import get_cosine_schedule_with_warmup as get_cosine_schedule_with_warmup
from gptrio.training.schedules import (
    get_cosine_with_hard_restarts_schedule_with_warmup as get_cosine_with_hard_restarts_schedule_with_warmup,
)
from gptrio.training.schedules import (
    get_cosine_with_min_lr_schedule_with_warmup as get_cosine_with_min_lr_schedule_with_warmup,
)
from gptrio.training.schedules import (
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate as get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
)
from gptrio.training.schedules import get_inverse_sqrt_schedule as get_inverse_sqrt_schedule
from gptrio.training.schedules import get_linear_schedule_with_warmup as get_linear_schedule_with_warmup
from gptrio.training.schedules import (
    get_polynomial_decay_schedule_with_warmup as get_polynomial_decay_schedule_with_warmup,
)
from gptrio.training.schedules import get_reduce_on_plateau_schedule as get_reduce_on_plateau_schedule
from gptrio.training.schedules import get_scheduler as get_scheduler
from gptrio.training.schedules import get_wsd_schedule as get_wsd_schedule
