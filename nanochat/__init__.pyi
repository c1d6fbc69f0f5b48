from nanochat.api.models import Model as Model
from nanochat.api.models import Score as Score
from nanochat.api.models import load as load
from nanochat.api.recipes import Plan as Plan
from nanochat.api.recipes import PlannedStage as PlannedStage
from nanochat.api.recipes import Progress as Progress
from nanochat.api.recipes import load_recipe as load_recipe
from nanochat.api.recipes import plan as plan
from nanochat.api.recipes import run as run
from nanochat.api.runs import Run as Run
from nanochat.api.runs import Series as Series
from nanochat.api.runs import find_run as find_run

__version__: str
