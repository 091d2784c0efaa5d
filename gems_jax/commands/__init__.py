"""What ``gems-jax`` can do, a file for each command: its options, and what it does.

The help lists all commands, so a file imports what takes time where it runs.
"""

from gems_jax.arguments import Command
from gems_jax.commands.calibrate import CALIBRATE
from gems_jax.commands.compare import COMPARE
from gems_jax.commands.completion import completion
from gems_jax.commands.demo import DEMO
from gems_jax.commands.doctor import DOCTOR
from gems_jax.commands.evaluate import EVALUATE
from gems_jax.commands.export import EXPORT
from gems_jax.commands.find import RECOMMEND, SEARCH
from gems_jax.commands.identify import IDENTIFY
from gems_jax.commands.init import INIT
from gems_jax.commands.items import ITEMS
from gems_jax.commands.predict import PREDICT
from gems_jax.commands.prepare import PREPARE
from gems_jax.commands.pretrain import PRETRAIN
from gems_jax.commands.serve import SERVE
from gems_jax.commands.train import TRAIN

COMMANDS: dict[str, Command] = {
    "demo": DEMO,
    "prepare": PREPARE,
    "pretrain": PRETRAIN,
    "calibrate": CALIBRATE,
    "identify": IDENTIFY,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "items": ITEMS,
    "export": EXPORT,
    "recommend": RECOMMEND,
    "search": SEARCH,
    "predict": PREDICT,
    "serve": SERVE,
    "compare": COMPARE,
    "init": INIT,
    "doctor": DOCTOR,
}
COMMANDS["completion"] = completion(COMMANDS)
