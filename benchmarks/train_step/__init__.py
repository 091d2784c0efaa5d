"""The cost of one training step of two tasks: GEMS beside joint AdamW, GaLore, LoRA and two steps in PyTorch.

`problem.py` says what all of them train; every method has a file of its own, and `methods.py` lists them. Measured are
a method in a process of its own (`alone.py`), its program for eight devices (`devices.py`), and the time of all methods
in turns (`turns.py`); `table.py` prints it. Run it by ``python -m benchmarks.train_step`` (`__main__.py`).
"""
